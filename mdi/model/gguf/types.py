"""The types of tensors in GGUF files: how many values a block holds, and in how many bytes (ggml, `ggml-common.h`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A row of K values is K / `values` blocks of `n_bytes` bytes, one after another."""

    name: str
    values: int
    n_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` values, which must be whole blocks."""
        return columns // self.values * self.n_bytes

    @property
    def bits_per_value(self) -> float:
        return 8 * self.n_bytes / self.values


F32, F16, BF16 = GgmlType("F32", 1, 4), GgmlType("F16", 1, 2), GgmlType("BF16", 1, 2)
Q4_0, Q4_1 = GgmlType("Q4_0", 32, 18), GgmlType("Q4_1", 32, 20)
Q5_0, Q5_1 = GgmlType("Q5_0", 32, 22), GgmlType("Q5_1", 32, 24)
Q8_0, IQ4_NL = GgmlType("Q8_0", 32, 34), GgmlType("IQ4_NL", 32, 18)
Q2_K, Q3_K = GgmlType("Q2_K", 256, 84), GgmlType("Q3_K", 256, 110)
Q4_K, Q5_K, Q6_K = GgmlType("Q4_K", 256, 144), GgmlType("Q5_K", 256, 176), GgmlType("Q6_K", 256, 210)

# By number in the file. Types that only have a size here are named in refusals and by `mdi models inspect`, but not read.
GGML_TYPES: Mapping[int, GgmlType] = MappingProxyType(
    {
        0: F32,
        1: F16,
        2: Q4_0,
        3: Q4_1,
        6: Q5_0,
        7: Q5_1,
        8: Q8_0,
        9: GgmlType("Q8_1", 32, 36),
        10: Q2_K,
        11: Q3_K,
        12: Q4_K,
        13: Q5_K,
        14: Q6_K,
        15: GgmlType("Q8_K", 256, 292),
        16: GgmlType("IQ2_XXS", 256, 66),
        17: GgmlType("IQ2_XS", 256, 74),
        18: GgmlType("IQ3_XXS", 256, 98),
        19: GgmlType("IQ1_S", 256, 50),
        20: IQ4_NL,
        21: GgmlType("IQ3_S", 256, 110),
        22: GgmlType("IQ2_S", 256, 82),
        23: GgmlType("IQ4_XS", 256, 136),
        24: GgmlType("I8", 1, 1),
        25: GgmlType("I16", 1, 2),
        26: GgmlType("I32", 1, 4),
        27: GgmlType("I64", 1, 8),
        28: GgmlType("F64", 1, 8),
        29: GgmlType("IQ1_M", 256, 56),
        30: BF16,
        34: GgmlType("TQ1_0", 256, 54),
        35: GgmlType("TQ2_0", 256, 66),
        39: GgmlType("MXFP4", 32, 17),
        40: GgmlType("NVFP4", 64, 36),
        41: GgmlType("Q1_0", 128, 18),
        42: GgmlType("Q2_0", 64, 18),
    }
)
