"""Known shapes against the numbers of parameters that their publishers name."""

from __future__ import annotations

import math

import pytest

from mdi.errors import ModelError
from mdi.model.known import SHAPES, known_config
from mdi.model.kv import scale_bytes
from mdi.model.layout import block_layout, default_block
from mdi.model.packed import decode_bytes, packed_bytes
from mdi.model.quantise import WeightFormat

# Billions, as the model cards say; embeddings that are tied count once.
PUBLISHED = {
    "llama-7b": 6.74, "llama-13b": 13.02, "llama-70b": 68.98, "llama-3-8b": 8.03, "llama-3.1-8b": 8.03, "llama-3.1-70b": 70.55,
    "llama-3.1-405b": 405.85, "llama-3.2-1b": 1.24, "llama-3.2-3b": 3.21, "tinyllama-1.1b": 1.10, "mistral-7b": 7.25,
    "mixtral-8x7b": 46.70, "qwen2.5-0.5b": 0.49, "qwen2.5-1.5b": 1.54, "qwen2.5-7b": 7.62, "qwen2.5-32b": 32.76, "qwen3-0.6b": 0.60,
    "qwen3-8b": 8.19, "qwen3-32b": 32.76, "qwen3-30b-a3b": 30.53, "gemma-2-2b": 2.61, "phi-3-mini": 3.82, "smollm3-3b": 3.08,
}  # fmt: skip
ACTIVE = {"mixtral-8x7b": 12.9, "qwen3-30b-a3b": 3.3}  # billions that a token meets


def parameters(name: str) -> int:
    config = known_config(name)
    blocks = sum(math.prod(placed.shape) for block in range(config.n_blocks) for placed in block_layout(config, block))
    return blocks + (1 if config.tied_head else 2) * config.vocab_size * config.d_model + config.d_model


@pytest.mark.parametrize("name", SHAPES)
def test_a_known_shape_has_the_published_number_of_parameters(name: str) -> None:
    assert parameters(name) / 1e9 == pytest.approx(PUBLISHED[name], abs=0.006)


@pytest.mark.parametrize("name", ACTIVE)
def test_a_token_reads_the_published_active_parameters_of_a_mixture(name: str) -> None:
    config = known_config(name)
    active = config.n_blocks * decode_bytes(config, WeightFormat(32)) / 4 + 2 * config.vocab_size * config.d_model
    assert active / 1e9 == pytest.approx(ACTIVE[name], rel=0.03)


@pytest.mark.parametrize("name", ["llama-7b", "gemma-2-2b", "smollm3-3b"])
def test_a_token_reads_all_of_a_dense_block(name: str) -> None:
    config = known_config(name)
    fmt = WeightFormat(4, default_block(config))
    scales = scale_bytes(config.n_kv_heads, config.head_dim)  # of KV: no weights, and read with the KV
    assert decode_bytes(config, fmt) + scales == packed_bytes(config, fmt)[0]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="no model shape is called 'llama-8b'") as caught:
        known_config("llama-8b")
    assert "llama-7b" in (caught.value.hint or "")
