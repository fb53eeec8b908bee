"""What a longer context adds to a block's time, worked out from what was measured.

Both are derived, not measured: in a decode step a row reads the keys and values of all tokens before it, at a speed in proportion to
that at which the device reads the block's weights; in a chunk, where many rows share that reading, each row multiplies with each token
before it, at the speed of the device's matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

from mdi.model.config import ModelConfig
from mdi.model.packed import decode_bytes
from mdi.model.quantise import WeightFormat

# How much slower onnxruntime's attention reads keys and values for one row than its matrix product reads int4 weights: blocks of the 1B
# shape (`measure_blocks`, 1 thread of an AMD EPYC) at positions 128 and 4000 differ by 1.3e-6 s a token, and 0.54e-6 s at equal speed.
ATTENTION_SLOWER = 2.4


@dataclass(frozen=True, slots=True)
class ContextTime:
    """Seconds that each token of context adds to each row of a block."""

    decode_s: float
    prefill_s: float

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        fmt: WeightFormat,
        *,
        kv_bytes_per_token: int,
        decode_block_s: float,
        prefill_block_s: float,
        chunk_tokens: int,
    ) -> ContextTime:
        """From the bytes of keys and values of a token in one block, and the times of a block: of one row, and of a chunk."""
        read_bytes_per_s = decode_bytes(config, fmt) / decode_block_s
        operations_per_s = chunk_tokens * block_operations(config) / prefill_block_s
        return cls(ATTENTION_SLOWER * kv_bytes_per_token / read_bytes_per_s, attention_operations(config) / operations_per_s)


def block_operations(config: ModelConfig) -> float:
    """Additions and multiplications of one token in a block, attention aside: two for each weight that it meets."""
    return 2 * decode_bytes(config, WeightFormat(32)) / 4


def attention_operations(config: ModelConfig) -> int:
    """Additions and multiplications of one token for each token before it, in one block: scores and sums, two for each value."""
    return 4 * config.d_q
