"""Packs: one block's weights in one safetensors file, named by its SHA-256.

A *block* pack holds `qkv`, `o`, `gate_up` and `down` (each as `.weight` float32 [N, K], or `.codes` and `.scales`) and the two norms.
An *embedding* pack holds `embedding` in the checkpoint's own data type; a *head* pack holds `norm` and the linear layer `head`.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.quantise import WeightFormat, quantise

PACK_VERSION = 1
MAX_HEADER_BYTES = 64 << 10  # a pack has at most 10 tensors; 64 KiB is a hundred times their header
COPY_BYTES = 1 << 20
ALIGNMENT = 64  # cache line: onnxruntime reads the mapped tensors in place

DTYPES: Mapping[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),  # numpy has no bfloat16: its bits
}


class PackKind(StrEnum):
    BLOCK = "block"
    EMBEDDING = "embedding"
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class PackRef:
    """A pack by its content."""

    sha256: str
    n_bytes: int

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ModelError(f"{self.sha256[:80]!r} is not a SHA-256 in hexadecimal")
        if not 0 < self.n_bytes < 1 << 40:
            raise ModelError(f"a pack of {self.n_bytes} bytes is not possible")

    @property
    def filename(self) -> str:
        return f"{self.sha256}.safetensors"


@dataclass(frozen=True, slots=True)
class PackTensor:
    """Where a tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Pack:
    """An opened pack: its description and the places of its tensors. Nothing is read but the header."""

    path: Path
    kind: PackKind
    fmt: WeightFormat
    tensors: Mapping[str, PackTensor]

    def read(self, name: str) -> NDArray[Any]:
        """The tensor, mapped read-only."""
        place = self.tensors[name]
        dtype = DTYPES[place.dtype]
        return np.memmap(self.path, dtype, mode="r", offset=place.offset, shape=place.shape)


def linear_tensors(name: str, weight: NDArray[np.float32], fmt: WeightFormat) -> dict[str, NDArray[Any]]:
    """The tensors of one linear layer [N, K] in a format."""
    if not fmt.quantised:
        return {f"{name}.weight": weight}
    packed = quantise(weight, fmt)
    return {f"{name}.codes": packed.codes, f"{name}.scales": packed.scales}


def write_pack(
    directory: Path,
    kind: PackKind,
    fmt: WeightFormat,
    tensors: Mapping[str, NDArray[Any]],
    *,
    bf16: frozenset[str] = frozenset(),
) -> PackRef:
    """Writes a pack under its final name, whole or not at all. Tensors named in `bf16` are uint16 bits of bfloat16."""
    header: dict[str, Any] = {
        "__metadata__": {"mdi": json.dumps({"version": PACK_VERSION, "kind": kind, "format": fmt.to_json()}, sort_keys=True)}
    }
    names = {dtype: name for name, dtype in DTYPES.items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    offset = 0
    for name, array in arrays.items():
        dtype = "BF16" if name in bf16 else names[array.dtype]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
        if array.nbytes % 4:
            raise ModelError(f"tensor {name} has {array.nbytes} bytes; packs keep tensors aligned to 4 bytes")
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with PackWriter(directory) as writer:
        writer.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            writer.write(array.data.cast("B"))
        return writer.commit()


class PackWriter:
    """Receives a pack's bytes into a temporary file; `commit` gives it its name, leaving the `with` without it leaves nothing behind."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._hash = hashlib.sha256()
        self._n_bytes = 0
        handle, name = tempfile.mkstemp(prefix=".partial-", dir=directory)
        self._path = Path(name)
        self._file: BinaryIO = os.fdopen(handle, "wb")

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    @property
    def n_bytes(self) -> int:
        return self._n_bytes

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._n_bytes += len(data)

    def commit(self, expected: PackRef | None = None) -> PackRef:
        """Names the file by its content. Raises ModelError when it is not the expected one."""
        found = PackRef(self._hash.hexdigest(), self._n_bytes)
        if expected is not None and found != expected:
            raise ModelError(f"pack {expected.sha256[:12]} arrived damaged ({found.n_bytes} of {expected.n_bytes} bytes)")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.chmod(0o644)
        self._path.replace(self._directory / found.filename)
        return found


def open_pack(path: Path) -> Pack:
    """Reads and checks the header. Raises ModelError when the file is not a whole pack of this version."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"{path.name} is not a pack: its header would have {length} bytes")
            header = json.loads(file.read(length))
        described = json.loads(header.pop("__metadata__")["mdi"])
        if described["version"] != PACK_VERSION:
            raise ModelError(
                f"{path.name} is a pack of version {described['version']}, not {PACK_VERSION}", hint="mdi models rm"
            )
        tensors = {name: _place(name, entry, 8 + length, size) for name, entry in header.items()}
        return Pack(path, PackKind(described["kind"]), WeightFormat.from_json(described["format"]), tensors)
    except OSError as error:
        raise ModelError(f"pack {path.name} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, struct.error) as error:
        raise ModelError(f"{path.name} is not a pack: {error!r}") from error


def _place(name: str, entry: Mapping[str, Any], base: int, file_bytes: int) -> PackTensor:
    start, stop = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    expected = int(np.prod(shape, dtype=np.int64)) * DTYPES[entry["dtype"]].itemsize
    if stop - start != expected or start < 0 or base + stop > file_bytes:
        raise ModelError(f"tensor {name} does not fit its pack")
    return PackTensor(entry["dtype"], shape, base + start, stop - start)


def verify(path: Path, ref: PackRef) -> bool:
    """Whether the file holds exactly this pack. Reads all of it."""
    try:
        if path.stat().st_size != ref.n_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == ref.sha256
    except FileNotFoundError:
        return False


def chunks(path: Path) -> Iterator[bytes]:
    """The file in pieces for the wire."""
    with path.open("rb") as file:
        while piece := file.read(COPY_BYTES):
            yield piece
