"""From the bytes of a tensor to what we compute with: fp32, or the codes of MatMulNBits that mean exactly the same values."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.gguf import types
from mdi.model.gguf.blocks import UNPACKERS, Unpacked, unpack
from mdi.model.gguf.types import GgmlType
from mdi.model.linear import LinearPart, Quantised, pack_nibbles
from mdi.model.quantise import CHUNK_VALUES

FLOATS = (types.F32, types.F16, types.BF16)


@dataclass(frozen=True, slots=True)
class Target:
    """The exact form of a block format: `bits` a code, one scale for `block` values.

    `centre` is the format's code that stands for MatMulNBits' zero. Formats without minima have one of their own. With minima it is free,
    because the correction makes up for it: the middle of the codes halves the error that int8 activations cause (4.0e-3 of the result
    instead of 8.0e-3, on random Q4_K blocks).
    """

    bits: int
    block: int
    centre: int
    correction: bool = False

    def part(self, rows: int, columns: int) -> LinearPart:
        return LinearPart(rows, columns, self.bits, self.block, correction=self.correction)


# Five- and six-bit codes are stored in 8: MatMulNBits has nothing between.
TARGETS = {
    types.Q4_0: Target(4, 32, 8),
    types.Q4_1: Target(4, 32, 8, correction=True),
    types.Q5_0: Target(8, 32, 16),
    types.Q5_1: Target(8, 32, 16, correction=True),
    types.Q8_0: Target(8, 32, 128),
    types.Q2_K: Target(4, 16, 2, correction=True),
    types.Q3_K: Target(4, 16, 4),
    types.Q4_K: Target(4, 32, 8, correction=True),
    types.Q5_K: Target(8, 32, 16, correction=True),
    types.Q6_K: Target(8, 16, 32),
    types.IQ4_NL: Target(8, 32, 128),
}


def readable(ggml_type: GgmlType) -> bool:
    return ggml_type in FLOATS or ggml_type in UNPACKERS


def floats(ggml_type: GgmlType, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of bytes [N, row bytes] as float32 [N, K], to the last bit what ggml's dequantisation gives. The array is the caller's own.

    Raises ModelError for a type that has no reader.
    """
    if ggml_type is types.F32:
        return rows.view("<f4").astype(np.float32, copy=False)
    if ggml_type is types.F16:
        return rows.view("<f2").astype(np.float32)
    if ggml_type is types.BF16:
        return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if ggml_type not in UNPACKERS:
        raise unreadable(ggml_type, "a tensor")
    result = np.empty((len(rows), _columns(ggml_type, rows)), np.float32)

    def work(chunk: slice, unpacked: Unpacked) -> None:
        result[chunk] = unpacked.values().reshape(result[chunk].shape)

    _by_chunks(ggml_type, rows, work)
    return result


def codes(ggml_type: GgmlType, rows: NDArray[np.uint8]) -> Quantised:
    """Rows of bytes [N, row bytes] as codes, for the types in `TARGETS`.

    Without minima the values are those of `floats` to the last bit; with minima they differ by rounding in fp32, for a product
    is split in two.
    """
    target = TARGETS[ggml_type]
    form = target.part(len(rows), _columns(ggml_type, rows))
    arrays = {
        name: np.empty(shape, np.uint8 if dtype == "U8" else np.float32) for name, (dtype, shape) in form.tensors().items()
    }
    shift = (1 << (target.bits - 1)) - target.centre

    def work(chunk: slice, unpacked: Unpacked) -> None:
        shifted = unpacked.codes if shift == 0 else unpacked.codes + np.uint8(shift)
        packed = shifted if target.bits == 8 else pack_nibbles(shifted)
        arrays["codes"][chunk] = packed.reshape(arrays["codes"][chunk].shape)
        arrays["scales"][chunk] = unpacked.scales.reshape(arrays["scales"][chunk].shape)
        if unpacked.minima is not None:
            correction = unpacked.scales * np.float32(target.centre) - unpacked.minima
            arrays["correction"][chunk] = correction.reshape(arrays["correction"][chunk].shape)

    _by_chunks(ggml_type, rows, work)
    return Quantised(arrays["codes"], arrays["scales"], form.bits, form.columns, correction=arrays.get("correction"))


def unreadable(ggml_type: GgmlType, what: str) -> ModelError:
    return ModelError(
        f"{what} is stored as {ggml_type.name}, which cannot be read",
        hint=f"choose a file of one of these: {', '.join(known.name for known in (*FLOATS, *UNPACKERS))}",
    )


def _columns(ggml_type: GgmlType, rows: NDArray[np.uint8]) -> int:
    n_bytes: int = rows.shape[1]
    return n_bytes // ggml_type.n_bytes * ggml_type.values


def _by_chunks(ggml_type: GgmlType, rows: NDArray[np.uint8], work: Callable[[slice, Unpacked], None]) -> None:
    """Unpacks some rows at a time, in all cores: temporaries of a whole matrix would be several times its size."""
    step = max(1, CHUNK_VALUES // _columns(ggml_type, rows))

    def some(start: int) -> None:
        chunk = slice(start, start + step)
        with np.errstate(invalid="ignore", over="ignore"):  # scales of a damaged file may be infinite
            work(chunk, unpack(ggml_type, rows[chunk]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy releases the interpreter lock in its loops
        list(pool.map(some, range(0, len(rows), step)))
