"""The exact forms in which a linear layer [N, K] is stored and computed: one or more parts, each a run of rows in one form.

A part of 32 bits is plain fp32. One of 4 or 8 bits holds unsigned codes with a scale per row and block of `block` columns, and means

    weight[n, order[j]] = (code[n, j] - zero[n, j // block]) * scale[n, j // block] + correction[n, j // block]

`zero` is 8 (4 bits) or 128 (8 bits) unless the part has `zeros`; there is no `correction` and no `order` unless it has them. These are the
forms that onnxruntime's MatMulNBits computes fast: zeros are whole numbers, because fp32 ones are 150 times slower, and what they cannot
say goes into the correction, which is a product with the sums of the inputs' blocks: `y = MatMulNBits(x) + blocksum(x) @ correction.T`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError

BLOCK_SIZES = (16, 32, 64, 128, 256)  # what MatMulNBits takes
CODE_BITS = (4, 8)
MAX_SIDE = 1 << 24  # rows or columns: a head of 4 million tokens (mdi.model.config) stays four times below


@dataclass(frozen=True, slots=True)
class LinearPart:
    """The shape and form of one part. Raises ModelError when MatMulNBits could not compute it."""

    rows: int
    columns: int
    bits: int
    block: int = 0
    zeros: bool = False
    correction: bool = False
    order: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= MAX_SIDE and 1 <= self.columns <= MAX_SIDE):
            raise ModelError(f"a linear layer of {self.rows} x {self.columns} values is not possible")
        if self.bits == 32:
            if self.block or self.zeros or self.correction or self.order:
                raise ModelError("fp32 weights have no blocks, zeros, corrections or order")
        elif self.bits not in CODE_BITS or self.block not in BLOCK_SIZES:
            raise ModelError(f"weights of {self.bits} bits in blocks of {self.block} are not possible")
        elif self.correction and self.columns % self.block:
            raise ModelError(f"a correction needs whole blocks of {self.block}, and {self.columns} columns are none")

    @property
    def blocks(self) -> int:
        """Blocks along a row; the last may be padded."""
        return -(-self.columns // self.block)

    @property
    def form(self) -> tuple[object, ...]:
        """Equal for parts that one kernel can compute together, as far as shapes tell."""
        return (self.columns, self.bits, self.block, self.zeros, self.correction, self.order)

    @property
    def only_scaled(self) -> bool:
        """Codes that mean `(code - zero) * scale` with the zero of their bits: what the kernels of experts take."""
        return self.bits != 32 and not (self.zeros or self.correction or self.order)

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What a pack holds of the part: safetensors type and shape by the tensor's last name."""
        if self.bits == 32:
            return {"weight": ("F32", (self.rows, self.columns))}
        n, blocks = self.rows, self.blocks
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            "codes": ("U8", (n, blocks, self.block * self.bits // 8)),
            "scales": ("F32", (n, blocks)),
        }
        if self.zeros:
            found["zeros"] = ("U8", (n, -(-blocks * self.bits // 8)))
        if self.correction:
            found["correction"] = ("F32", (n, blocks))
        if self.order:
            found["order"] = ("I32", (self.columns,))
        return found

    @property
    def n_bytes(self) -> int:
        return sum(math.prod(shape) * (1 if dtype == "U8" else 4) for dtype, shape in self.tensors().values())

    def to_json(self) -> dict[str, int]:
        """Flags are there only where they are true."""
        sizes = {"rows": self.rows, "columns": self.columns, "bits": self.bits, "block": self.block}
        return sizes | {name: 1 for name in ("zeros", "correction", "order") if getattr(self, name)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LinearPart:
        """For text that may come from anyone. Raises ModelError, KeyError, TypeError or ValueError."""
        flags = {name: bool(data.get(name)) for name in ("zeros", "correction", "order")}
        return cls(int(data["rows"]), int(data["columns"]), int(data["bits"]), int(data["block"]), **flags)


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """A part as codes. Raises ModelError when the arrays contradict each other.

    codes: uint8 [N, blocks, block bits / 8], 4-bit codes two to a byte, low nibble first; columns beyond `columns` are padding
    scales: float32 [N, blocks]
    zeros: uint8 [N, blocks], one to a byte and below 2**bits
    correction: float32 [N, blocks]
    order: int32 [K], a permutation: which input column each stored column multiplies
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    columns: int
    zeros: NDArray[np.uint8] | None = None
    correction: NDArray[np.float32] | None = None
    order: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if self.codes.ndim != 3 or self.bits not in CODE_BITS:
            raise ModelError(f"codes of {self.bits} bits and shape {self.codes.shape} are no linear layer")
        per_block = self.part.tensors()["scales"][1]
        for array in (self.scales, self.zeros, self.correction):
            if array is not None and array.shape != per_block:
                raise ModelError(f"{array.shape} scales, zeros or corrections do not belong to blocks {per_block}")
        if self.codes.shape[1] != self.part.blocks:
            raise ModelError(f"{self.codes.shape[1]} blocks of {self.part.block} are not {self.columns} columns")
        if self.order is not None and not np.array_equal(np.sort(self.order), np.arange(self.columns)):
            raise ModelError(f"the order of the columns is no permutation of {self.columns}")

    @property
    def part(self) -> LinearPart:
        n, _, block_bytes = self.codes.shape
        has = [array is not None for array in (self.zeros, self.correction, self.order)]
        return LinearPart(n, self.columns, self.bits, block_bytes * 8 // self.bits, *has)

    def take(self, rows: NDArray[np.integer[Any]] | slice) -> Quantised:
        """Some rows, in the order asked for."""
        zeros = None if self.zeros is None else self.zeros[rows]
        correction = None if self.correction is None else self.correction[rows]
        return Quantised(self.codes[rows], self.scales[rows], self.bits, self.columns, zeros, correction, self.order)


Part: TypeAlias = Quantised | NDArray[np.float32]  # fp32 [N, K]
Linear: TypeAlias = tuple[Part, ...]  # rows from top to bottom


def described(part: Part) -> LinearPart:
    return part.part if isinstance(part, Quantised) else LinearPart(part.shape[0], part.shape[1], 32)


def fuse(parts: Sequence[Part]) -> Linear:
    """The same linear layer with neighbours of one form joined, so that one kernel computes them. fp32 parts are copied, if several."""
    groups = itertools.groupby((_plain(part) for part in parts), key=lambda part: (described(part).form, _order_bytes(part)))
    return tuple(_join(list(group)) for _, group in groups)


def take_turns(parts: Sequence[Part]) -> Part:
    """Rows of parts of one form, fp32 or `only_scaled`, alternating: the first of each, the second of each, and so on."""
    if len(parts) == 1:
        return parts[0]
    coded = [part for part in parts if isinstance(part, Quantised)]
    if not coded:
        return _alternating([part for part in parts if isinstance(part, np.ndarray)])
    assert len(coded) == len(parts)
    assert len({part.part.form for part in coded}) == 1
    assert coded[0].part.only_scaled
    codes, scales = _alternating([part.codes for part in coded]), _alternating([part.scales for part in coded])
    return Quantised(codes, scales, coded[0].bits, coded[0].columns)


def _alternating(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    stacked = np.stack(arrays, axis=1)  # [N, parts, ...]
    return stacked.reshape(-1, *stacked.shape[2:])


def _plain(part: Part) -> Part:
    """Without zeros that are the default."""
    if isinstance(part, np.ndarray) or part.zeros is None or (part.zeros != 1 << (part.bits - 1)).any():
        return part
    return Quantised(part.codes, part.scales, part.bits, part.columns, None, part.correction, part.order)


def _order_bytes(part: Part) -> bytes:
    return b"" if isinstance(part, np.ndarray) or part.order is None else part.order.tobytes()


def _join(parts: list[Part]) -> Part:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, np.ndarray):
        return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])
    same = [part for part in parts if isinstance(part, Quantised)]

    def rows(arrays: list[NDArray[Any] | None]) -> NDArray[Any] | None:
        there = [array for array in arrays if array is not None]
        return np.concatenate(there) if there else None

    return Quantised(
        np.concatenate([part.codes for part in same]),
        np.concatenate([part.scales for part in same]),
        first.bits,
        first.columns,
        rows([part.zeros for part in same]),
        rows([part.correction for part in same]),
        first.order,
    )


def stored(part: Part) -> dict[str, NDArray[Any]]:
    """The arrays that `described(part).tensors()` names."""
    if isinstance(part, np.ndarray):
        return {"weight": part}
    arrays: dict[str, NDArray[Any]] = {"codes": part.codes, "scales": part.scales}
    if part.zeros is not None:
        arrays["zeros"] = pack_nibbles(part.zeros) if part.bits == 4 else part.zeros
    if part.correction is not None:
        arrays["correction"] = part.correction
    if part.order is not None:
        arrays["order"] = part.order
    return arrays


def restored(part: LinearPart, arrays: Mapping[str, NDArray[Any]]) -> Part:
    """The inverse of `stored`."""
    if part.bits == 32:
        return arrays["weight"]
    zeros = arrays.get("zeros")
    if zeros is not None and part.bits == 4:
        zeros = unpack_nibbles(zeros)[:, : part.blocks]
    return Quantised(
        arrays["codes"], arrays["scales"], part.bits, part.columns, zeros, arrays.get("correction"), arrays.get("order")
    )


def dequantise(part: Part) -> NDArray[np.float32]:
    """float32 [N, K] by the definition above."""
    if isinstance(part, np.ndarray):
        return part
    codes = unpack_nibbles(part.codes) if part.bits == 4 else part.codes
    zeros = np.float32(1 << (part.bits - 1)) if part.zeros is None else part.zeros[..., None].astype(np.float32)
    values = (codes.astype(np.float32) - zeros) * part.scales[..., None]
    if part.correction is not None:
        values += part.correction[..., None]
    values = values.reshape(len(codes), -1)[:, : part.columns]
    if part.order is None:
        return values
    result = np.empty_like(values)
    result[:, part.order] = values
    return result


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., n] values below 16 to [..., ceil(n / 2)] bytes, low nibble first."""
    packed = values[..., 0::2].copy()
    packed[..., : values.shape[-1] // 2] |= values[..., 1::2] << 4
    return packed


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., n] bytes to [..., 2 n] values."""
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)
