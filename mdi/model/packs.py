"""Packs: one block's weights in one safetensors file, named by its SHA-256.

A *block* pack holds the linear layers `qkv`, `o`, `gate_up` and `down` and the two norms, and if it was observed the scales of KV in
8 bits (`kv.py`). An *embedding* pack holds `embedding` in the
checkpoint's own data type, or as a linear layer; a *head* pack holds `norm` and the linear layer `head`.

The metadata describe every linear layer as a list of `LinearPart`s (see `linear.py`). A layer `L` of one part is `L.weight`,
or `L.codes`, `L.scales` and so on; of several, `L.0.codes`, `L.1.codes` and so on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.linear import Linear, LinearPart, Part, described, restored, stored

PACK_VERSION = 2
MAX_HEADER_BYTES = 64 << 10  # five linear layers of three parts of five tensors have a header of 8 KiB
COPY_BYTES = 1 << 20
PARTIAL_PREFIX = ".partial-"
STALE_S = 3600.0  # what is written now was changed seconds ago
ALIGNMENT = 64  # cache line: onnxruntime reads the mapped tensors in place

DTYPES: Mapping[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "I32": np.dtype(np.int32),
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
class PackedPart:
    """A part of a linear layer, and what its tensors' names begin with."""

    part: LinearPart
    prefix: str


@dataclass(frozen=True, slots=True)
class Pack:
    """An opened pack: its description and the places of its tensors. Nothing is read but the header."""

    path: Path
    kind: PackKind
    tensors: Mapping[str, PackTensor]
    linears: Mapping[str, tuple[PackedPart, ...]]

    def read(self, name: str) -> NDArray[Any]:
        """The tensor, mapped read-only."""
        place = self.tensors[name]
        dtype = DTYPES[place.dtype]
        return np.memmap(self.path, dtype, mode="r", offset=place.offset, shape=place.shape)

    def linear(self, name: str) -> Linear:
        """A linear layer's parts, mapped read-only (4-bit zeros are unpacked into memory)."""
        return tuple(
            restored(each.part, {kind: self.read(f"{each.prefix}.{kind}") for kind in each.part.tensors()})
            for each in self.linears[name]
        )


def packed_parts(name: str, parts: Sequence[LinearPart]) -> tuple[PackedPart, ...]:
    """The parts of the linear layer `name` with the prefixes that a pack gives them."""
    if len(parts) == 1:
        return (PackedPart(parts[0], name),)
    return tuple(PackedPart(part, f"{name}.{i}") for i, part in enumerate(parts))


def write_pack(
    directory: Path,
    kind: PackKind,
    tensors: Mapping[str, NDArray[Any] | Linear],
    *,
    bf16: frozenset[str] = frozenset(),
    durable: bool = True,
) -> PackRef:
    """Writes a pack under its final name, whole or not at all. Linear layers are given as tuples of parts.

    Tensors named in `bf16` are uint16 bits of bfloat16. One that is not `durable` may be lost with the power: it is soon deleted.
    """
    linears = {name: value for name, value in tensors.items() if isinstance(value, tuple)}
    arrays = _arrays(tensors)
    description = {
        "version": PACK_VERSION,
        "kind": kind,
        "linears": {name: [described(part).to_json() for part in parts] for name, parts in linears.items()},
    }
    header: dict[str, Any] = {"__metadata__": {"mdi": json.dumps(description, sort_keys=True)}}
    names = {dtype: name for name, dtype in DTYPES.items()}
    offset = 0
    for name, array in arrays.items():
        dtype = "BF16" if name in bf16 else names[array.dtype]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with PackWriter(directory) as writer:
        writer.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            writer.write(array.data.cast("B"))
        return writer.commit(durable=durable)


def _arrays(tensors: Mapping[str, NDArray[Any] | Linear]) -> dict[str, NDArray[Any]]:
    """Every tensor by its name, in the order of writing: what is not whole 4 bytes long comes last, so that the others stay aligned."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in tensors.items():
        if isinstance(value, tuple):
            arrays |= _part_arrays(name, value)
        else:
            arrays[name] = np.ascontiguousarray(value)
    return dict(sorted(arrays.items(), key=lambda item: item[1].nbytes % 4 != 0))


def _part_arrays(name: str, parts: Linear) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    places: tuple[tuple[PackedPart, Part], ...] = tuple(
        zip(packed_parts(name, [described(part) for part in parts]), parts, strict=True)
    )
    for place, part in places:
        arrays |= {f"{place.prefix}.{kind}": np.ascontiguousarray(array) for kind, array in stored(part).items()}
    return arrays


def clear_stale(directory: Path, prefix: str) -> None:
    """Removes temporary files and directories that a process which was killed left in `directory`."""
    for left in directory.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # its owner has just finished, or is another user
            if time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


class PackWriter:
    """Receives a pack's bytes into a temporary file; `commit` gives it its name, leaving the `with` without it leaves nothing behind."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        clear_stale(directory, PARTIAL_PREFIX)
        self._directory = directory
        self._hash = hashlib.sha256()
        self._n_bytes = 0
        handle, name = tempfile.mkstemp(prefix=PARTIAL_PREFIX, dir=directory)
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

    def commit(self, expected: PackRef | None = None, *, durable: bool = True) -> PackRef:
        """Names the file by its content. Raises ModelError when it is not the expected one."""
        found = PackRef(self._hash.hexdigest(), self._n_bytes)
        if expected is not None and found != expected:
            raise ModelError(f"pack {expected.sha256[:12]} arrived damaged ({found.n_bytes} of {expected.n_bytes} bytes)")
        self._file.flush()
        if durable:
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
        about = json.loads(header.pop("__metadata__")["mdi"])
        if about["version"] != PACK_VERSION:
            raise ModelError(f"{path.name} is a pack of version {about['version']}, not {PACK_VERSION}", hint="mdi models rm")
        tensors = {name: _place(name, entry, 8 + length, size) for name, entry in header.items()}
        linears = {name: _parts(name, entries, tensors) for name, entries in about["linears"].items()}
        return Pack(path, PackKind(about["kind"]), tensors, linears)
    except OSError as error:
        raise ModelError(f"pack {path.name} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise ModelError(f"{path.name} is not a pack: {error!r:.200}") from error


def _place(name: str, entry: Mapping[str, Any], base: int, file_bytes: int) -> PackTensor:
    (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
    if any(type(number) is not int or not 0 <= number <= file_bytes for number in (start, stop, *shape)):
        raise ModelError(f"tensor {name:.80} has a size or place that is not possible")
    if stop - start != math.prod(shape) * DTYPES[entry["dtype"]].itemsize or base + stop > file_bytes:
        raise ModelError(f"tensor {name} does not fit its pack")
    return PackTensor(entry["dtype"], shape, base + start, stop - start)


def _parts(name: str, entries: Sequence[Mapping[str, Any]], tensors: Mapping[str, PackTensor]) -> tuple[PackedPart, ...]:
    """What the metadata say of a linear layer, checked against the tensors that are there."""
    parts = packed_parts(name, [LinearPart.from_json(entry) for entry in entries])
    if not parts or len({each.part.columns for each in parts}) != 1:
        raise ModelError(f"the parts of the linear layer {name} do not fit each other")
    for each in parts:
        for kind, (dtype, shape) in each.part.tensors().items():
            found = tensors.get(f"{each.prefix}.{kind}")
            if found is None or (found.dtype, found.shape) != (dtype, shape):
                raise ModelError(f"the linear layer {name} lacks {kind} of the type {dtype} and the shape {list(shape)}")
    return parts


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
