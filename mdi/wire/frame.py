"""The data-plane codec: one step's activations as bytes. Pure.

    magic "MDI" + version   4 bytes
    crc32c                  u32, over every byte that follows it
    header length           u32
    header                  msgpack, a map with exactly the keys below
    padding                 zero bytes up to the next multiple of 16, so that the tensor is aligned
    tensor                  [tokens, d_model], row-major

    key  field   value
    e    epoch   int
    s    step    int
    r    rows    list of [slot, position, count, emit]
    f    free    list of slots, freed before the rows run
    t    dtype   "f32" or "f16"
    n    shape   [tokens, d_model]

Integers are little-endian. What comes in is checked before anything of its size is allocated, and each refusal names the field.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import msgpack
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from mdi.errors import FrameError, InternalError

VERSION = 1
MAX_FRAME_BYTES = 4 << 20  # bounds a node's receive buffer per stream; 256 tokens at d_model 4096 in f32
MAX_COUNTER = 2**63 - 1  # epochs and steps; never reached, but an int must end somewhere

WireDtype: TypeAlias = Literal["f32", "f16"]
Hidden: TypeAlias = NDArray[np.floating[Any]]  # [tokens, d_model], float32 or float16

_DTYPES: dict[WireDtype, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAGIC = b"MDI" + bytes([VERSION])
_PREFIX = struct.Struct("<4sII")
_CRC_END = 8
_ALIGNMENT = 16
_FIELDS = {"e": "epoch", "s": "step", "r": "rows", "f": "free", "t": "dtype", "n": "shape"}
_BASE_HEADER_BYTES = 64  # keys, dtype, both counters, shape and list headers take at most 53
_ROW_HEADER_BYTES = 1 + 4 * 5 + 5  # four u32 in a short list, and one entry of `free`
_packer = msgpack.Packer(buf_size=4096)  # one for all: each has a buffer, by default of 256 KiB
_SHOWN = 64  # characters of a refused value in a message

_VERSION_HINT = "Check that both nodes run the same version: `mdi doctor HOST`."
_LINK_HINT = "The link or a program on it changes bytes: try another cable or network, or `mdi doctor HOST`."


@dataclass(frozen=True, slots=True)
class Row:
    """Consecutive tokens of one sequence in a step."""

    slot: int  # KV slot of the sequence, the same on every stage
    position: int  # tokens of the sequence that are in KV before these
    count: int  # tokens in this frame, at least 1
    emit: int  # how many of the last of them must come back to the starter


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One step on the wire: `hidden` is [sum of row counts, d_model], the rows' tokens one after another.

    `free` lists slots that are freed before the rows run, so a row may take such a slot again, from position 0.
    """

    epoch: int
    step: int
    rows: tuple[Row, ...]
    free: tuple[int, ...]
    hidden: Hidden

    def emitted(self, hidden: Hidden) -> Frame:
        """The frame that goes back to the starter: of the last stage's output `hidden`, the last `emit` tokens of each row.

        Rows that emit nothing are left out; `position` becomes that of the first token that comes back.
        Copies only when tokens are left out between others.
        """
        if len(hidden) != sum(row.count for row in self.rows):
            raise InternalError(f"step {self.step} has {sum(row.count for row in self.rows)} tokens, not {len(hidden)}")
        rows: list[Row] = []
        wanted: list[slice[int, int, None]] = []
        end = 0
        for row in self.rows:
            end += row.count
            start = end - row.emit
            if row.emit:
                rows.append(Row(row.slot, row.position + row.count - row.emit, row.emit, row.emit))
                if wanted and wanted[-1].stop == start:
                    start = wanted.pop().start
                wanted.append(slice(start, end))
        kept: Hidden = (
            hidden[wanted[0]] if len(wanted) == 1 else np.concatenate([hidden[:0], *(hidden[part] for part in wanted)])
        )
        return Frame(self.epoch, self.step, tuple(rows), (), kept)


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """What a stream's two ends agreed on when the stage was loaded; `max_tokens` is per frame, `ctx` per slot."""

    d_model: int
    max_tokens: int
    n_slots: int
    ctx: int
    dtype: WireDtype

    def __post_init__(self) -> None:
        for name in ("d_model", "max_tokens", "n_slots", "ctx"):
            _check_int(name, getattr(self, name), 1, 2**31 - 1)
        if self.dtype not in get_args(WireDtype):
            raise _refusal("dtype", self.dtype, "f32 or f16")
        if self.max_frame_bytes > MAX_FRAME_BYTES:
            raise _refusal("max_tokens", self.max_tokens, f"so few that a frame stays within {MAX_FRAME_BYTES} bytes")

    @property
    def token_bytes(self) -> int:
        return self.d_model * _DTYPES[self.dtype].itemsize

    @property
    def max_header_bytes(self) -> int:
        return _BASE_HEADER_BYTES + _ROW_HEADER_BYTES * self.n_slots

    @property
    def max_frame_bytes(self) -> int:
        return self.frame_bytes(self.max_tokens)

    def frame_bytes(self, n_tokens: int) -> int:
        """What a frame of so many tokens takes at most."""
        return _PREFIX.size + self.max_header_bytes + _ALIGNMENT + n_tokens * self.token_bytes


def encode(frame: Frame) -> bytes:
    """The frame as bytes, the tensor copied once. The frame is ours, so its fields are trusted but for what numpy decides."""
    hidden = frame.hidden if frame.hidden.flags.c_contiguous else np.ascontiguousarray(frame.hidden)
    dtype = _DTYPE_NAMES.get(hidden.dtype)
    if dtype is None or hidden.ndim != 2:
        raise InternalError(f"a frame holds [tokens, d_model] in f32 or f16, not {hidden.shape} in {hidden.dtype}")
    rows = [(row.slot, row.position, row.count, row.emit) for row in frame.rows]
    fields = {"e": frame.epoch, "s": frame.step, "r": rows, "f": frame.free, "t": dtype, "n": hidden.shape}
    header: bytes = _packer.pack(fields)
    padded = header + bytes(_padding(len(header)))
    length = len(header).to_bytes(4, "little")
    crc = crc32c(hidden.data, crc32c(padded, crc32c(length)))
    return b"".join((_MAGIC, crc.to_bytes(4, "little"), length, padded, hidden.data))


def decode(data: bytes, limits: FrameLimits, *, check_finite: bool = False) -> Frame:
    """The frame in `data`, its `hidden` a view of it and as immutable. With `check_finite`, NaN and infinity are refused too.

    Raises FrameError, naming the field, for any byte string that `encode` would not have made within `limits`.
    """
    size = len(data)
    if not _PREFIX.size <= size <= limits.max_frame_bytes:
        raise _refusal("length", size, f"{_PREFIX.size} to {limits.max_frame_bytes} bytes", _LINK_HINT)
    magic, crc, header_bytes = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise _refusal("magic", magic, repr(_MAGIC))
    if header_bytes > min(limits.max_header_bytes, size - _PREFIX.size):
        raise _refusal("header length", header_bytes, f"at most {min(limits.max_header_bytes, size - _PREFIX.size)}")
    if crc != crc32c(memoryview(data)[_CRC_END:]):
        raise _refusal("crc32c", f"{crc:08x}", "the checksum of the bytes that arrived", _LINK_HINT)

    header_end = _PREFIX.size + header_bytes
    header = _unpack(data[_PREFIX.size : header_end], limits)
    epoch = _check_int("epoch", header["e"], 0, MAX_COUNTER)
    step = _check_int("step", header["s"], 0, MAX_COUNTER)
    free = _check_free(header["f"], limits)
    rows = _check_rows(header["r"], free, limits)
    tokens = sum([row.count for row in rows])
    if tokens > limits.max_tokens:
        raise _refusal("rows", f"{tokens} tokens", f"at most {limits.max_tokens} tokens")
    dtype, shape = header["t"], header["n"]
    if dtype != limits.dtype:
        raise _refusal("dtype", dtype, limits.dtype)
    if not _is_ints(shape, 2) or shape[0] != tokens or shape[1] != limits.d_model:
        raise _refusal("shape", shape, f"[{tokens}, {limits.d_model}]")
    start = header_end + _padding(header_bytes)
    if size - start != tokens * limits.token_bytes:
        raise _refusal("tensor", f"{max(size - start, 0)} bytes", f"{tokens * limits.token_bytes} bytes")
    if any(data[header_end:start]):
        raise _refusal("padding", data[header_end:start], "zero bytes")

    hidden = np.frombuffer(data, _DTYPES[limits.dtype], tokens * limits.d_model, start).reshape(tokens, limits.d_model)
    if check_finite and not np.isfinite(hidden).all():
        token = int(np.argmin(np.isfinite(hidden).all(axis=1)))
        raise _refusal("tensor", f"token {token}", "finite numbers", "A stage computed NaN or infinity: try f32 on the wire.")
    return Frame(epoch, step, rows, free, hidden)


def _unpack(data: bytes, limits: FrameLimits) -> dict[str, Any]:
    try:
        header = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=8,
            max_bin_len=0,
            max_ext_len=0,
            max_map_len=len(_FIELDS),
            max_array_len=max(4, limits.n_slots),
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _refusal("header", str(error) or type(error).__name__, "one msgpack map") from None
    # Unpacking keeps the last of equal keys; with no more entries than fields, a repeated key leaves another one missing.
    if type(header) is not dict or header.keys() != _FIELDS.keys():
        raise _refusal("header", header, f"a map with the keys {' '.join(_FIELDS)}")
    return header


def _check_free(free: object, limits: FrameLimits) -> tuple[int, ...]:
    if type(free) is not list:
        raise _refusal("free", free, "a list of slots")
    for slot in free:
        _check_int("free slot", slot, 0, limits.n_slots - 1)
    if len(set(free)) != len(free):
        raise _refusal("free", free, "each slot once")
    return tuple(free)


def _check_rows(rows: object, free: Sequence[int], limits: FrameLimits) -> tuple[Row, ...]:
    if type(rows) is not list:
        raise _refusal("rows", rows, "a list")
    for row in rows:
        if not _is_ints(row, 4):
            raise _refusal("row", row, "[slot, position, count, emit], all integers")
        slot, position, count, emit = row
        _check_int("slot", slot, 0, limits.n_slots - 1)
        _check_int("position", position, 0, 0 if slot in free else limits.ctx - 1)
        _check_int("count", count, 1, limits.ctx - position)
        _check_int("emit", emit, 0, count)
    if len({row[0] for row in rows}) != len(rows):
        raise _refusal("slots", [row[0] for row in rows], "each slot once")
    return tuple([Row(*row) for row in rows])


def _is_ints(value: object, length: int) -> bool:
    """A bool is not an int here, nor is 1.0."""
    return type(value) is list and len(value) == length and all(type(item) is int for item in value)


def _check_int(field: str, value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _refusal(field, value, f"an integer from {low} to {high}")
    return value


def _padding(header_bytes: int) -> int:
    return -(_PREFIX.size + header_bytes) % _ALIGNMENT


def _refusal(field: str, value: object, expected: str, hint: str = _VERSION_HINT) -> FrameError:
    shown = value if type(value) is str and value.isprintable() else repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    return FrameError(f"A frame was refused: {field} is {shown}, expected {expected}.", hint=hint)
