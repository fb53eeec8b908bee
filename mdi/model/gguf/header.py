"""One GGUF file, memory-mapped, its header checked: every length, count and offset before anything is made from it.

    "GGUF"  u32 version  u64 n_tensors  u64 n_keys
    n_keys    times: text key, u32 type, value
    n_tensors times: text name, u32 n_dims, u64 dims[n_dims] (innermost first), u32 type, u64 offset
    padding to `general.alignment`, then the tensors' data, from which offsets count

All little-endian (ggml, docs/gguf.md). Version 2 differs from 3 only in that 3 also allows big-endian files, which are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.gguf.cursor import AGAIN, Cursor
from mdi.model.gguf.metadata import MAX_KEYS, Metadata
from mdi.model.gguf.types import GGML_TYPES, GgmlType
from mdi.model.shards import LFS_MARK

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_TENSORS = 1 << 16  # the largest published models have some 3,000
MAX_NAME_BYTES = 256  # ggml itself keeps 63
MAX_DIMS = 4
MAX_VALUES = 1 << 40  # of one tensor: 400 times the largest published matrix
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16  # the largest page that any of our devices has
MIN_KEY_BYTES = 8 + 4 + 1  # an empty key, its type, the smallest value
MIN_INFO_BYTES = 8 + 4 + 8 + 4 + 8  # an empty name and one dimension


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` outermost first ([out, in] for a matrix), bytes `[start, stop)` of the file."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One opened file. Tensors are views of it, read when touched."""

    path: Path
    data: NDArray[np.uint8]
    header_bytes: int
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Raises ModelError naming the file and what is wrong in it; a hostile file costs no more time or memory than a good one."""
        try:
            size = path.stat().st_size
            data = np.memmap(path, np.uint8, mode="r") if size >= len(MAGIC) else np.zeros(0, np.uint8)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}", hint=AGAIN) from error
        if data[: len(LFS_MARK)].tobytes() == LFS_MARK:
            raise ModelError(f"{path} is a Git LFS pointer, not the weights", hint="run: git lfs pull")
        if data[: len(MAGIC)].tobytes() != MAGIC:
            raise ModelError(f"{path} is not a GGUF file", hint=AGAIN)
        return cls._read(path, data)

    @classmethod
    def _read(cls, path: Path, data: NDArray[np.uint8]) -> GgufFile:
        cursor = Cursor(data, str(path))
        cursor.skip(len(MAGIC), "the magic")
        _check_version(cursor, path)
        n_tensors = cursor.count("the number of tensors", MAX_TENSORS, MIN_INFO_BYTES)
        n_keys = cursor.count("the number of keys", MAX_KEYS, MIN_KEY_BYTES)
        metadata = Metadata.read(cursor, n_keys, data, str(path))
        alignment = _alignment(cursor, metadata)
        infos = [_read_info(cursor, number, path) for number in range(n_tensors)]
        header_bytes = cursor.position
        start = header_bytes + -header_bytes % alignment
        tensors = _place(cursor, infos, start, alignment, data.size)
        return cls(path, data, header_bytes, metadata, MappingProxyType(tensors))

    def rows(self, name: str, first: int = 0, count: int | None = None) -> NDArray[np.uint8]:
        """The stored bytes of a tensor, read into memory of their own: uint8 [product of outer dimensions, bytes of a row].

        Of these rows all, or `count` from `first` on. Raises ModelError for a file that vanished or became shorter.
        """
        tensor = self.tensors[name]
        row_bytes = tensor.type.row_bytes(tensor.shape[-1])
        n_bytes = tensor.n_bytes if count is None else count * row_bytes
        try:
            values = np.fromfile(self.path, np.uint8, n_bytes, offset=tensor.start + first * row_bytes)
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read: {error.strerror}", hint=AGAIN) from error
        if values.size != n_bytes:
            raise ModelError(
                f"{self.path} became shorter while it was in use", hint="start again when the download is complete"
            )
        return values.reshape(-1, row_bytes)


def _check_version(cursor: Cursor, path: Path) -> None:
    version = cursor.u32("the version")
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise ModelError(f"{path} is a big-endian GGUF file", hint="choose the little-endian file of the same model")
    if version not in VERSIONS:
        raise ModelError(
            f"{path} has the GGUF version {version}; only {' and '.join(map(str, VERSIONS))} can be read",
            hint="choose a newer conversion of the model" if version < min(VERSIONS) else "update mdi",
        )


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.error(f"its alignment is {alignment!r:.80}, not a power of two up to {MAX_ALIGNMENT}")
    return alignment


def _read_info(cursor: Cursor, number: int, path: Path) -> tuple[str, GgmlType, tuple[int, ...], int]:
    """Name, type, shape outermost first, offset."""
    name = cursor.name(f"the name of tensor {number}", MAX_NAME_BYTES)
    what = f"tensor {name!r:.80}"
    n_dims = cursor.u32(f"the dimensions of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.error(f"{what} has {n_dims} dimensions, not 1 to {MAX_DIMS}")
    shape = tuple(reversed([cursor.u64(f"the dimensions of {what}") for _ in range(n_dims)]))
    kind = cursor.u32(f"the type of {what}")
    offset = cursor.u64(f"the offset of {what}")
    if min(shape) < 1 or math.prod(shape) > MAX_VALUES:
        raise cursor.error(f"{what} has the impossible shape {list(shape)}")
    ggml_type = GGML_TYPES.get(kind)
    if ggml_type is None:
        raise ModelError(
            f"{path} stores {what} as type {kind}, which is not known", hint="choose another quantisation, such as Q4_0"
        )
    if shape[-1] % ggml_type.values:
        raise cursor.error(f"rows of {what} hold {shape[-1]} values, which are no whole blocks of {ggml_type.name}")
    return name, ggml_type, shape, offset


def _place(
    cursor: Cursor, infos: list[tuple[str, GgmlType, tuple[int, ...], int]], data_start: int, alignment: int, size: int
) -> dict[str, TensorInfo]:
    """Tensors by name, in the file's order. They must lie within the file, aligned and apart."""
    tensors: dict[str, TensorInfo] = {}
    for name, ggml_type, shape, offset in infos:
        n_bytes = math.prod(shape[:-1]) * ggml_type.row_bytes(shape[-1])
        if name in tensors:
            raise cursor.error(f"tensor {name!r:.80} comes twice")
        if offset % alignment:
            raise cursor.error(f"tensor {name!r:.80} is not aligned: it begins at {offset}")
        if data_start + offset + n_bytes > size:
            raise cursor.error(f"tensor {name!r:.80} ends at byte {data_start + offset + n_bytes}, the file at {size}")
        tensors[name] = TensorInfo(name, ggml_type, shape, data_start + offset, data_start + offset + n_bytes)
    end = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        if tensor.start < end:
            raise cursor.error(f"tensor {tensor.name!r:.80} overlaps another")
        end = tensor.stop
    return tensors
