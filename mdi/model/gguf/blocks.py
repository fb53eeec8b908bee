"""The quantised block formats of GGUF, each unpacked to the same form: small whole numbers, scales and minima.

Layouts are those of ggml (`ggml-common.h`): little-endian, fp16 scales; nothing is rounded on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mdi.model.gguf import types
from mdi.model.gguf.types import GgmlType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

ONE, TWO, FOUR, PAIR, LOW, SIGN = (np.uint8(number) for number in (1, 2, 4, 3, 15, 0x80))
# The 16 values of IQ4_NL (`kvalues_iq4nl`), denser near zero than an even grid.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)
_IQ4_CODES = (IQ4_VALUES + 128).astype(np.uint8)
_SHIFTS_4 = np.array([0, 2, 4, 6], np.uint8)
_SHIFTS_8 = np.arange(8, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """B blocks of V values, each `(code - zero) * scale - minimum`; scales and minima hold for groups of V / G values.

    codes: uint8 [B, V]; scales: float32 [B, G]; minima: float32 [B, G], or None where they are all 0.
    """

    codes: Bytes
    zero: int
    scales: Floats
    minima: Floats | None = None

    def values(self) -> Floats:
        """float32 [B, V]; equal to what ggml's own dequantisation gives, to the last bit."""
        n_blocks, n_groups = self.scales.shape
        values = self.codes.astype(np.float32)
        values -= np.float32(self.zero)
        values = values.reshape(n_blocks, n_groups, -1)
        values *= self.scales[..., None]
        if self.minima is not None:
            values -= self.minima[..., None]
        return values.reshape(n_blocks, -1)


def unpack(ggml_type: GgmlType, rows: Bytes) -> Unpacked:
    """Rows of bytes [N, row bytes] as blocks; a row's blocks follow each other. `ggml_type` is one of `UNPACKERS`."""
    return UNPACKERS[ggml_type](rows.reshape(-1, ggml_type.n_bytes))


def _half(blocks: Bytes, at: int) -> Floats:
    """The fp16 number at byte `at` of every block, float32 [B, 1]."""
    halves: Floats = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)
    return halves


def _nibbles(packed: Bytes) -> Bytes:
    """[B, n] bytes to [B, 2n] codes: all low halves, then all high ones."""
    return np.concatenate((packed & LOW, packed >> FOUR), axis=-1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """Bit j of the u32 at byte `at`, moved to bit 4 of value j: [B, 32]."""
    return np.unpackbits(blocks[:, at : at + 4], axis=-1, bitorder="little") << FOUR


def _q4_0(blocks: Bytes) -> Unpacked:
    return Unpacked(_nibbles(blocks[:, 2:]), 8, _half(blocks, 0))


def _q4_1(blocks: Bytes) -> Unpacked:
    return Unpacked(_nibbles(blocks[:, 4:]), 0, _half(blocks, 0), -_half(blocks, 2))


def _q5_0(blocks: Bytes) -> Unpacked:
    return Unpacked(_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2), 16, _half(blocks, 0))


def _q5_1(blocks: Bytes) -> Unpacked:
    return Unpacked(_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4), 0, _half(blocks, 0), -_half(blocks, 2))


def _q8_0(blocks: Bytes) -> Unpacked:
    return Unpacked(blocks[:, 2:] ^ SIGN, 128, _half(blocks, 0))  # int8 q as q + 128


def _iq4_nl(blocks: Bytes) -> Unpacked:
    return Unpacked(_IQ4_CODES[_nibbles(blocks[:, 2:])], 128, _half(blocks, 0))


def _q2_k(blocks: Bytes) -> Unpacked:
    """scales[16]: low half scales a group of 16, high half its minimum; qs[64]: four times 2 bits; d, dmin."""
    codes = (blocks[:, 16:80].reshape(-1, 2, 1, 32) >> _SHIFTS_4[:, None]) & PAIR  # [B, half, shift, 32]
    scales, minima = blocks[:, :16] & 15, blocks[:, :16] >> 4
    return Unpacked(codes.reshape(-1, 256), 0, _half(blocks, 80) * scales, _half(blocks, 82) * minima)


def _q3_k(blocks: Bytes) -> Unpacked:
    """hmask[32]: third bits; qs[64]: low two bits; scales[12]: 16 times 6 bits; d."""
    low = ((blocks[:, 32:96].reshape(-1, 2, 1, 32) >> _SHIFTS_4[:, None]) & PAIR).reshape(-1, 8, 32)
    high = (blocks[:, None, :32] >> _SHIFTS_8[:, None]) & ONE
    packed = blocks[:, 96:108]
    scales_low = np.concatenate((packed[:, :8] & 15, packed[:, :8] >> 4), axis=-1)
    scales_high = ((packed[:, None, 8:] >> _SHIFTS_4[:, None]) & PAIR).reshape(-1, 16)
    scales = (scales_low | (scales_high << 4)).astype(np.float32) - 32
    return Unpacked((low | (high << TWO)).reshape(-1, 256), 4, _half(blocks, 108) * scales)


def _k_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """12 bytes to 8 scales and 8 minima of 6 bits: the first 4 of each lie whole, the others in two parts."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 6) << 4)), axis=-1)
    minima = np.concatenate((second & 63, (third >> 4) | ((second >> 6) << 4)), axis=-1)
    return scales, minima


def _q4_k(blocks: Bytes) -> Unpacked:
    """d, dmin; scales[12]; qs[128]: 32 bytes hold two sub-blocks of 32, one in the low halves, one in the high ones."""
    scales, minima = _k_scales(blocks[:, 4:16])
    return Unpacked(_paired(blocks[:, 16:]).reshape(-1, 256), 0, _half(blocks, 0) * scales, _half(blocks, 2) * minima)


def _q5_k(blocks: Bytes) -> Unpacked:
    """As Q4_K, with qh[32] before qs: bit s of qh[l] is the fifth bit of value l in sub-block s."""
    scales, minima = _k_scales(blocks[:, 4:16])
    fifth = ((blocks[:, None, 16:48] >> _SHIFTS_8[:, None]) & ONE) << FOUR
    codes = (_paired(blocks[:, 48:]) | fifth).reshape(-1, 256)
    return Unpacked(codes, 0, _half(blocks, 0) * scales, _half(blocks, 2) * minima)


def _paired(packed: Bytes) -> Bytes:
    """qs[128] of a K format to its 8 sub-blocks: [B, 8, 32]."""
    quarters = packed.reshape(-1, 4, 32)
    return np.stack((quarters & LOW, quarters >> FOUR), axis=2).reshape(-1, 8, 32)


def _q6_k(blocks: Bytes) -> Unpacked:
    """ql[128]: low 4 bits; qh[64]: high 2 bits; int8 scales[16]; d last."""
    halves = blocks[:, :128].reshape(-1, 2, 1, 2, 32)
    low = np.concatenate((halves & LOW, halves >> FOUR), axis=2).reshape(-1, 2, 4, 32)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> _SHIFTS_4[:, None]) & PAIR
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return Unpacked((low | (high << FOUR)).reshape(-1, 256), 32, _half(blocks, 208) * scales)


UNPACKERS: Mapping[GgmlType, Callable[[Bytes], Unpacked]] = MappingProxyType(
    {
        types.Q4_0: _q4_0,
        types.Q4_1: _q4_1,
        types.Q5_0: _q5_0,
        types.Q5_1: _q5_1,
        types.Q8_0: _q8_0,
        types.Q2_K: _q2_k,
        types.Q3_K: _q3_k,
        types.Q4_K: _q4_k,
        types.Q5_K: _q5_k,
        types.Q6_K: _q6_k,
        types.IQ4_NL: _iq4_nl,
    }
)
