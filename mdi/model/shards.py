"""Safetensors files, memory-mapped: a header of JSON, then the tensors' bytes (huggingface/safetensors, README, "Format")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.fields import MAX_JSON_BYTES, Fields

MAX_HEADER_BYTES = MAX_JSON_BYTES  # of 300,000 tensors; the format itself would allow 100 MB
MAX_DIMS = 16  # numpy and torch go to 64; weights have at most 4
MAX_NUMBER = 1 << 63  # of what counts bytes or values
LFS_MARK = b"version https://git-lfs"  # what git leaves in place of a large file it did not fetch
AGAIN = "download the model again"
PIECE_VALUES = 1 << 20  # converted at a time: 2 MiB of fp16 stay in the cache until they are fp32

# Stored bits by safetensors name. numpy has no bfloat16: its bits are the upper half of a float32.
DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "I32": np.dtype("<i4")}
)
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: absolute half-open byte range in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file. Opening checks that the whole of it is there; tensors are views of the file, read when touched."""

    path: Path
    data: NDArray[np.uint8]
    header_bytes: int
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Raises ModelError naming the file when it is missing, cut short, or not safetensors."""
        try:
            size = path.stat().st_size
            data = np.memmap(path, np.uint8, mode="r") if size >= 8 else np.zeros(0, np.uint8)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}", hint=AGAIN) from error
        if data[: len(LFS_MARK)].tobytes() == LFS_MARK:
            raise ModelError(f"{path} is a Git LFS pointer, not the weights", hint="run: git lfs pull")
        header_stop = 8 + int.from_bytes(data[:8].tobytes(), "little") if size >= 8 else 8
        if header_stop > 8 + MAX_HEADER_BYTES:
            raise ModelError(f"{path} is not a safetensors file", hint=AGAIN)
        if header_stop > size:
            raise ModelError(f"{path} is cut short: its header ends at byte {header_stop}, the file at {size}", hint=AGAIN)
        header = Fields.parse(data[8:header_stop].tobytes(), f"the header of {path}")
        tensors = {name: _stored(header, name, header_stop) for name in header.values if name != "__metadata__"}
        expected = max((tensor.stop for tensor in tensors.values()), default=header_stop)
        if expected != size:
            state = "cut short" if size < expected else "too long"
            raise ModelError(f"{path} is {state}: {expected} bytes expected, {size} found", hint=AGAIN)
        return cls(path, data, header_stop, MappingProxyType(tensors))

    def raw(self, name: str) -> NDArray[Any]:
        """Read-only view [shape] of the stored values; bfloat16 as uint16 bits."""
        tensor = self.tensors[name]
        return self.data[tensor.start : tensor.stop].view(DTYPES[tensor.dtype]).reshape(tensor.shape).view(np.ndarray)

    def read(self, name: str) -> NDArray[Any]:
        """The stored values [shape], read into memory of their own: pages of a view would stay and count as this process's."""
        tensor = self.tensors[name]
        return self._values(tensor, 0, math.prod(tensor.shape)).reshape(tensor.shape)

    def floats(self, name: str) -> NDArray[np.float32]:
        """The values [shape] in fp32, exactly, with hardly any memory beside them: a head of 128,000 tokens has 2 GB."""
        tensor = self.tensors[name]
        values = np.empty(math.prod(tensor.shape), np.float32)
        for start in range(0, values.size, PIECE_VALUES):
            piece = values[start : start + PIECE_VALUES]
            stored = self._values(tensor, start, piece.size)
            if tensor.dtype == "BF16":
                np.left_shift(stored, np.uint32(16), out=piece.view(np.uint32))
            else:
                piece[:] = stored
        return values.reshape(tensor.shape)

    def _values(self, tensor: StoredTensor, start: int, count: int) -> NDArray[Any]:
        dtype = DTYPES[tensor.dtype]
        values = np.fromfile(self.path, dtype, count, offset=tensor.start + start * dtype.itemsize)
        if values.size != count:
            raise ModelError(
                f"{self.path} became shorter while it was in use", hint="start again when the download is complete"
            )
        return values


def _stored(header: Fields, name: str, data_start: int) -> StoredTensor:
    entry = header.object(name)
    if entry is None:
        raise header.refusal(name, "an object")
    dtype = entry.text("dtype")
    shape, offsets = (_naturals(entry, field) for field in ("shape", "data_offsets"))
    if len(offsets) != 2:
        raise entry.refusal("data_offsets", "two byte offsets")
    n_bytes = offsets[1] - offsets[0]
    if n_bytes < 0 or (dtype in DTYPES and n_bytes != math.prod(shape) * DTYPES[dtype].itemsize):
        raise ModelError(f"{entry.origin} gives {n_bytes} bytes to {dtype} values of shape {list(shape)}", hint=AGAIN)
    return StoredTensor(dtype, shape, data_start + offsets[0], data_start + offsets[1])


def _naturals(entry: Fields, name: str) -> tuple[int, ...]:
    values = entry.values.get(name)
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < MAX_NUMBER for value in values):
        raise entry.refusal(name, "a list of whole numbers")
    if len(values) > MAX_DIMS:
        raise entry.refusal(name, f"a list of at most {MAX_DIMS} numbers")
    return tuple(values)
