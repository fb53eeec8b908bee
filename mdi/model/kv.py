"""How keys and values are kept between steps: the types, and the scales of 8 bits.

Scales are static, one per head and channel, and lie in a block's pack. They come from what random tokens give (`calibration.py`), with
room above: a value beyond its channel's reach is cut, which costs far more than coarser steps do (docs/quantisation.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

KEY_SCALES, VALUE_SCALES = "key_scales", "value_scales"  # in a block's pack: fp32 [n_kv_heads head_dim]
MOST_CODE = 127
# A channel reaches to its mean magnitude plus this many times the way from there to the largest that was seen. Relative to the mean, so
# that a channel which is large always, as biases make them, keeps small steps.
REACH = 2.0
# A channel that random tokens leave quiet may speak for real ones: it reaches at least to this share of its head's middle channel.
LEAST_SHARE = 0.25
TINY = 1e-6  # scales are divided by: of a head that is all zeros


class KvType(StrEnum):
    """INT8 has one byte a value, by the pack's scales. HALF is bfloat16 or float16, what torch computes in on accelerators."""

    FP32 = "fp32"
    INT8 = "int8"
    HALF = "half"

    @property
    def value_bytes(self) -> int:
        match self:
            case KvType.FP32:
                return 4
            case KvType.HALF:
                return 2
            case KvType.INT8:
                return 1


@dataclass(frozen=True, slots=True)
class KvScales:
    """What one step of a code means: keys and values float32 [n_kv_heads, head_dim]."""

    keys: NDArray[np.float32]
    values: NDArray[np.float32]

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """As they lie in a pack."""
        return {KEY_SCALES: self.keys.reshape(-1), VALUE_SCALES: self.values.reshape(-1)}


def scale_bytes(n_kv_heads: int, head_dim: int) -> int:
    """Of both kinds of scales in a block's pack."""
    return 2 * 4 * n_kv_heads * head_dim


def kv_scales(keys: NDArray[np.float32], values: NDArray[np.float32], rotated: int) -> KvScales:
    """Scales for keys as they are kept, and values, each [n_kv_heads, T, head_dim].

    The first `rotated` dimensions of keys turn with their position, dimension i with i + rotated / 2: any position may put the length of
    such a pair into either of them.
    """
    half = rotated // 2
    pairs = np.hypot(keys[..., :half], keys[..., half:rotated])
    return KvScales(
        _scales(np.concatenate([pairs, pairs, np.abs(keys[..., rotated:])], axis=-1)),
        _scales(np.abs(values)),
    )


def _scales(magnitudes: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n_kv_heads, T, head_dim] to [n_kv_heads, head_dim]."""
    mean, most = magnitudes.mean(1), magnitudes.max(1)
    reach = mean + REACH * (most - mean)
    middle = np.median(reach, axis=-1, keepdims=True)
    scales: NDArray[np.float32] = (np.maximum(np.maximum(reach, LEAST_SHARE * middle), TINY) / MOST_CODE).astype(np.float32)
    return scales
