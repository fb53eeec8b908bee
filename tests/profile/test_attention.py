"""What a longer context costs, worked out from measured blocks."""

from __future__ import annotations

import pytest

from mdi.model.known import known_config
from mdi.model.packed import decode_bytes
from mdi.model.quantise import WeightFormat
from mdi.profile.attention import ATTENTION_SLOWER, ContextTime, attention_operations, block_operations

FMT = WeightFormat(4, 256)


def test_a_token_of_context_is_read_in_proportion_to_the_blocks_own_bytes() -> None:
    config = known_config("llama-7b")
    block_bytes = decode_bytes(config, FMT)
    kv_bytes = 2 * 32 * 128 * 4  # keys and values, heads, values of a head, fp32
    more = ContextTime.of(config, FMT, kv_bytes_per_token=kv_bytes, decode_block_s=0.010, prefill_block_s=0.5, chunk_tokens=64)
    assert more.decode_s == pytest.approx(ATTENTION_SLOWER * 0.010 * kv_bytes / block_bytes)
    # A chunk of 64 does 64 times the block's operations in 0.5 s.
    assert more.prefill_s == pytest.approx(0.5 * attention_operations(config) / (64 * block_operations(config)))


def test_operations_are_two_for_each_weight_and_value() -> None:
    config = known_config("llama-7b")
    assert block_operations(config) == pytest.approx(2 * (4 * 4096**2 + 3 * 4096 * 11008), rel=1e-3)
    assert attention_operations(config) == 2 * 2 * 32 * 128  # scores and weighted sums, a multiplication and an addition each


def test_of_a_mixture_only_the_chosen_experts_count() -> None:
    config = known_config("mixtral-8x7b")
    dense = 2 * (2 * 4096**2 + 2 * 4096 * 1024 + 2 * 3 * 4096 * 14_336)
    assert block_operations(config) == pytest.approx(dense, rel=1e-2)
