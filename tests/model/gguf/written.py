"""A small writer of GGUF files, from the format's description (ggml, docs/gguf.md): well-formed ones, and any other."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.model.gguf.types import GGML_TYPES, GgmlType

KINDS = {
    "u8": 0,
    "i8": 1,
    "u16": 2,
    "i16": 3,
    "u32": 4,
    "i32": 5,
    "f32": 6,
    "bool": 7,
    "str": 8,
    "u64": 10,
    "i64": 11,
    "f64": 12,
}
FORMS = dict(zip(KINDS, "BbHhIif?sQqd", strict=True))
NUMBERS = {ggml_type: number for number, ggml_type in GGML_TYPES.items()}
ALIGNMENT = 32

Tensor = tuple[GgmlType, tuple[int, ...], bytes]  # shape outermost first


@dataclass(frozen=True)
class Typed:
    """A value with its type in the file; a list is an array."""

    kind: str
    value: Any


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def scalar(kind: str, value: Any) -> bytes:
    return text(value) if kind == "str" else struct.pack("<" + FORMS[kind], value)


def typed(value: Any) -> Typed:
    """The type that converters write for a Python value."""
    match value:
        case Typed():
            return value
        case bool():
            return Typed("bool", value)
        case int():
            return Typed("u32", value)
        case float():
            return Typed("f32", value)
        case str() | bytes():
            return Typed("str", value)
        case [first, *_]:
            return Typed("i32" if isinstance(first, int) else typed(first).kind, value)
    raise TypeError(value)


def key_value(key: str | bytes, value: Any) -> bytes:
    entry = typed(value)
    if not isinstance(entry.value, list):
        return text(key) + struct.pack("<I", KINDS[entry.kind]) + scalar(entry.kind, entry.value)
    head = struct.pack("<IIQ", 9, KINDS[entry.kind], len(entry.value))
    return text(key) + head + b"".join(scalar(entry.kind, item) for item in entry.value)


def info(name: str, kind: int, shape: Sequence[int], offset: int) -> bytes:
    dims = struct.pack(f"<{len(shape)}Q", *reversed(shape))
    return text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


@dataclass
class Written:
    """What a file is made of; `bytes()` joins it. Tests change any part of it to something impossible."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    version: int = 3
    magic: bytes = b"GGUF"
    n_keys: int | None = None
    n_tensors: int | None = None
    offsets: Mapping[str, int] = field(default_factory=dict)

    def bytes(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.metadata) if self.n_keys is None else self.n_keys
        header = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        header += b"".join(key_value(key, value) for key, value in self.metadata.items())
        body = b""
        for name, (ggml_type, shape, data) in self.tensors.items():
            header += info(name, NUMBERS[ggml_type], shape, self.offsets.get(name, len(body)))
            body += data + bytes(-len(data) % ALIGNMENT)
        return header + bytes(-len(header) % ALIGNMENT) + body

    def save(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path


def random_rows(ggml_type: GgmlType, rows: int, columns: int, rng: np.random.Generator, std: float = 0.2) -> NDArray[np.uint8]:
    """Rows of random blocks, uint8 [rows, row bytes]: every bit pattern of codes and sub-scales occurs, values are about `std` wide."""
    raw = rng.integers(0, 256, (rows, ggml_type.row_bytes(columns)), dtype=np.uint8)
    blocks = raw.reshape(-1, ggml_type.n_bytes)
    for at, width in SCALES[ggml_type.name]:
        sizes = std / width * rng.uniform(0.5, 1.5, len(blocks)) * rng.choice([-1, 1], len(blocks))
        blocks[:, at : at + 2] = sizes.astype("<f2")[:, None].view(np.uint8)
    return raw


# Where the fp16 scales and minima lie in a block, and how wide the values of random codes are at scale 1.
SCALES: dict[str, list[tuple[int, float]]] = {
    "Q4_0": [(0, 4.6)],
    "Q4_1": [(0, 8.8), (2, 1.0)],
    "Q5_0": [(0, 9.2)],
    "Q5_1": [(0, 18.0), (2, 1.0)],
    "Q8_0": [(0, 74.0)],
    "Q2_K": [(80, 16.0), (82, 9.0)],
    "Q3_K": [(108, 43.0)],
    "Q4_K": [(0, 330.0), (2, 37.0)],
    "Q5_K": [(0, 660.0), (2, 37.0)],
    "Q6_K": [(208, 1360.0)],
    "IQ4_NL": [(0, 60.0)],
}
