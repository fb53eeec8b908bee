"""The frame codec: what goes in comes out, and nothing else does."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mdi.errors import FrameError, InternalError
from mdi.wire.frame import MAX_FRAME_BYTES, Frame, FrameLimits, Row, WireDtype, decode, encode

LIMITS = FrameLimits(d_model=4, max_tokens=32, n_slots=4, ctx=16, dtype="f32")
NUMPY: dict[WireDtype, Any] = {"f32": np.float32, "f16": np.float16}


def a_frame() -> Frame:
    hidden = np.arange(12, dtype=np.float32).reshape(3, 4)
    return Frame(epoch=3, step=70_000, rows=(Row(2, 5, 2, 1), Row(0, 0, 1, 1)), free=(0, 3), hidden=hidden)


def same(one: Frame, other: Frame) -> bool:
    fields = ("epoch", "step", "rows", "free")
    return (
        all(getattr(one, field) == getattr(other, field) for field in fields)
        and one.hidden.dtype == other.hidden.dtype
        and one.hidden.shape == other.hidden.shape
        and one.hidden.tobytes() == other.hidden.tobytes()
    )


def sealed(after_crc: bytes) -> bytes:
    return b"MDI\x01" + struct.pack("<I", crc32c(after_crc)) + after_crc


def forged(changes: dict[Any, Any] | None = None, *, header: bytes | None = None, tensor: bytes | None = None) -> bytes:
    """A frame with a right checksum, written independently of `encode`; `a_frame()` when nothing is changed."""
    fields = {"e": 3, "s": 70_000, "r": [[2, 5, 2, 1], [0, 0, 1, 1]], "f": [0, 3], "t": "f32", "n": [3, 4]}
    packed = msgpack.packb(fields | (changes or {})) if header is None else header
    data = np.arange(12, dtype="<f4").tobytes() if tensor is None else tensor
    return sealed(struct.pack("<I", len(packed)) + packed + bytes(-(12 + len(packed)) % 16) + data)


@st.composite
def frames(draw: st.DrawFn) -> tuple[Frame, FrameLimits]:
    dtype = draw(st.sampled_from(("f32", "f16")))
    d_model, n_slots, ctx = draw(st.integers(1, 9)), draw(st.integers(1, 70)), draw(st.integers(1, 300))
    free = draw(st.lists(st.integers(0, n_slots - 1), unique=True, max_size=n_slots))
    rows = []
    for slot in draw(st.lists(st.integers(0, n_slots - 1), unique=True, max_size=6)):
        position = 0 if slot in free else draw(st.integers(0, ctx - 1))
        count = draw(st.integers(1, min(9, ctx - position)))
        rows.append(Row(slot, position, count, draw(st.integers(0, count))))
    tokens = sum(row.count for row in rows)
    seed = draw(st.integers(0, 2**32 - 1))
    hidden = np.random.default_rng(seed).standard_normal((tokens, d_model)).astype(NUMPY[dtype])
    counters = st.integers(0, 2**63 - 1)
    frame = Frame(draw(counters), draw(counters), tuple(rows), tuple(free), hidden)
    return frame, FrameLimits(d_model, max(1, tokens), n_slots, ctx, dtype)


@settings(deadline=None)  # a busy machine is not a failure
@given(frames())
def test_a_frame_survives_the_wire(made: tuple[Frame, FrameLimits]) -> None:
    frame, limits = made
    data = encode(frame)
    back = decode(data, limits, check_finite=True)
    assert same(frame, back)
    assert len(data) <= limits.max_frame_bytes
    assert np.shares_memory(back.hidden, np.frombuffer(data, np.uint8)) or not back.hidden.size
    assert not back.hidden.flags.writeable


@settings(deadline=None)
@given(frames())
def test_only_wanted_tokens_come_back(made: tuple[Frame, FrameLimits]) -> None:
    frame, limits = made
    output = frame.hidden * 2
    back = decode(encode(frame.emitted(output)), limits)
    expected, end = [], 0
    for row in frame.rows:
        end += row.count
        expected += [output[token] for token in range(end - row.emit, end)]
        assert row.emit == 0 or Row(row.slot, row.position + row.count - row.emit, row.emit, row.emit) in back.rows
    assert back.hidden.tolist() == [token.tolist() for token in expected]
    assert (back.epoch, back.step, back.free) == (frame.epoch, frame.step, ())
    assert len(back.rows) == sum(row.emit > 0 for row in frame.rows)


def test_no_token_is_copied_when_all_come_back() -> None:
    frame = Frame(1, 1, (Row(0, 3, 1, 1), Row(1, 9, 1, 1)), (), np.zeros((2, 4), np.float32))
    assert np.shares_memory(frame.emitted(frame.hidden).hidden, frame.hidden)


def test_a_tensor_that_is_not_contiguous_is_sent_right() -> None:
    frame = Frame(1, 1, (Row(0, 0, 3, 3),), (), np.arange(12, dtype=np.float32).reshape(4, 3).T)
    assert same(decode(encode(frame), LIMITS), frame)


def test_the_format_is_the_documented_one() -> None:
    assert encode(a_frame()) == forged()


def test_the_tensor_is_aligned() -> None:
    for n_rows in range(1, 5):
        frame = Frame(1, 1, tuple(Row(slot, 0, 1, 1) for slot in range(n_rows)), (), np.zeros((n_rows, 4), np.float32))
        data = encode(frame)
        assert (len(data) - frame.hidden.nbytes) % 16 == 0


def test_every_truncation_is_refused() -> None:
    data = encode(a_frame())
    for length in range(len(data)):
        with pytest.raises(FrameError):
            decode(data[:length], LIMITS)


def test_every_flipped_bit_is_refused() -> None:
    data = encode(a_frame())
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            decode(bytes(broken), LIMITS)


@settings(deadline=None)
@given(st.binary(max_size=300))
@example(b"")
def test_arbitrary_bytes_are_refused_with_a_frame_error(data: bytes) -> None:
    for candidate in (data, sealed(data), forged(header=data)):
        with pytest.raises(FrameError):
            decode(candidate, LIMITS)


msgpack_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.sampled_from("esrftn"), msgpack_values)
def test_a_hostile_field_is_refused_or_harmless(key: str, value: object) -> None:
    data = forged({key: value})
    with suppress(FrameError):
        assert encode(decode(data, LIMITS)) == data


ROW = [0, 0, 1, 1]
HOSTILE = [
    ("epoch", {"e": -1}),
    ("epoch", {"e": True}),
    ("epoch", {"e": 2**63}),
    ("epoch", {"e": "3"}),
    ("step", {"s": 1.0}),
    ("step", {"s": None}),
    ("rows", {"r": None}),
    ("rows", {"r": {}}),
    ("row ", {"r": [[2, 5, 2, 1], [0, 0, 1]]}),
    ("row ", {"r": [[2, 5, 2, 1], [0, 0, 1, True]]}),
    ("row ", {"r": [[2, 5, 2, 1], 7]}),
    ("row ", {"r": [[2, 5, 2.0, 1], ROW]}),
    ("slot ", {"r": [[4, 5, 2, 1], ROW]}),
    ("slot ", {"r": [[-1, 5, 2, 1], ROW]}),
    ("slots", {"r": [[1, 0, 1, 1], [2, 0, 1, 1], [1, 1, 1, 1]]}),
    ("position", {"r": [[2, -1, 2, 1], ROW]}),
    ("position", {"r": [[2, 16, 2, 1], ROW]}),
    ("position", {"r": [[2, 5, 2, 1], [0, 1, 1, 1]]}),  # its slot is freed by this frame
    ("count", {"r": [[2, 15, 2, 1], ROW]}),
    ("count", {"r": [[2, 5, 0, 0], ROW]}),
    ("count", {"r": [[2, 5, 2**40, 1], ROW]}),
    ("count", {"r": [[2, 5, -2, 1], ROW]}),
    ("emit", {"r": [[2, 5, 2, 3], ROW]}),
    ("emit", {"r": [[2, 5, 2, -1], ROW]}),
    ("rows", {"r": [[0, 0, 16, 0], [1, 0, 16, 0], [2, 0, 16, 0]]}),
    ("free", {"f": 0}),
    ("free", {"f": [0, 0]}),
    ("free slot", {"f": [4]}),
    ("free slot", {"f": [False]}),
    ("free slot", {"f": [[]]}),
    ("dtype", {"t": "f16"}),
    ("dtype", {"t": "object"}),
    ("dtype", {"t": 1}),
    ("dtype", {"t": []}),
    ("shape", {"n": [3, 5]}),
    ("shape", {"n": [4, 4]}),
    ("shape", {"n": [3, 4, 1]}),
    ("shape", {"n": [3, True]}),
    ("shape", {"n": [2**62, 4]}),
    ("shape", {"n": "34"}),
    ("header", {"x": 1}),
    ("header", {1: 1}),
    ("header", {"t": "f" * 9}),
    ("header", {"t": b"f32"}),
    ("header", {"t": msgpack.ExtType(5, b"f32")}),
    ("header", {"t": msgpack.Timestamp(1)}),
    ("header", {"r": [[]] * 5}),
]


@pytest.mark.parametrize(("field", "changes"), HOSTILE, ids=repr)
def test_a_wrong_field_is_named(field: str, changes: dict[Any, Any]) -> None:
    with pytest.raises(FrameError, match=f"^A frame was refused: {field}") as caught:
        decode(forged(changes), LIMITS)
    assert len(str(caught.value)) < 250
    assert caught.value.hint


def test_a_header_that_is_not_exactly_one_map_is_refused() -> None:
    good = forged()
    header = good[12 : 12 + int.from_bytes(good[8:12], "little")]
    repeated = b"\x86" + header[1:-4] + b"\xa1e\x03"  # six entries: the last one says `e` again and `n` is missing
    longer = b"\x87" + header[1:] + b"\xa1e\x04"  # all six, then another `e`
    for hostile in (
        b"",
        b"\xc0",
        b"\x90",
        header[:-1],
        header + b"\xc0",
        repeated,
        longer,
        b"\x91" * 200,
        b"\xdd\xff\xff\xff\xff",
    ):
        with pytest.raises(FrameError, match="header"):
            decode(forged(header=hostile), LIMITS)


@pytest.mark.parametrize("extra", [-4, -1, 1, 4])
def test_a_tensor_of_another_size_is_refused(extra: int) -> None:
    with pytest.raises(FrameError, match="tensor"):
        decode(forged(tensor=bytes(48 + extra)), LIMITS)


def test_padding_holds_nothing() -> None:
    data = bytearray(forged())
    end = 12 + int.from_bytes(data[8:12], "little")
    assert end % 16
    data[end] = 1
    with pytest.raises(FrameError, match="padding"):
        decode(sealed(bytes(data[8:])), LIMITS)


def test_another_version_is_named() -> None:
    with pytest.raises(FrameError, match="magic") as caught:
        decode(b"MDI\x02" + forged()[4:], LIMITS)
    assert "mdi doctor" in str(caught.value.hint)


@pytest.mark.parametrize("claimed", [2**31, 2**32 - 1, 301])
def test_giant_lengths_are_refused_without_allocation(claimed: int) -> None:
    header_length = b"MDI\x01" + struct.pack("<II", 0, claimed) + bytes(40)
    giant_list = forged(header=b"\x86\xa1r\xdd" + struct.pack(">I", claimed))
    giant_text = forged(header=b"\x86\xa1t\xdb" + struct.pack(">I", claimed))
    for hostile in (header_length, giant_list, giant_text, forged({"n": [claimed, 4]}), forged({"r": [[0, 0, claimed, 0]]})):
        tracemalloc.start()
        try:
            with pytest.raises(FrameError):
                decode(hostile, LIMITS)
            assert tracemalloc.get_traced_memory()[1] < 64 << 10
        finally:
            tracemalloc.stop()


def test_a_message_over_the_limit_is_refused_by_its_length_alone() -> None:
    with pytest.raises(FrameError, match="length"):
        decode(bytes(LIMITS.max_frame_bytes + 1), LIMITS)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_on_request(poison: float) -> None:
    frame = a_frame()
    frame.hidden[1, 2] = poison
    data = encode(frame)
    assert same(decode(data, LIMITS), frame)
    with pytest.raises(FrameError, match="token 1"):
        decode(data, LIMITS, check_finite=True)


def test_our_own_mistakes_are_internal_errors() -> None:
    frame = a_frame()
    with pytest.raises(InternalError):
        encode(Frame(1, 1, frame.rows, (), frame.hidden.astype(np.float64)))
    with pytest.raises(InternalError):
        encode(Frame(1, 1, frame.rows, (), frame.hidden[0]))
    with pytest.raises(InternalError):
        frame.emitted(frame.hidden[:2])


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("d_model", {"d_model": 0}),
        ("ctx", {"ctx": True}),
        ("dtype", {"dtype": "f64"}),
        ("max_tokens", {"max_tokens": MAX_FRAME_BYTES}),
    ],
)
def test_limits_themselves_are_checked(field: str, changes: dict[str, Any]) -> None:
    given = {"d_model": 4, "max_tokens": 32, "n_slots": 4, "ctx": 16, "dtype": "f32"}
    with pytest.raises(FrameError, match=field):
        FrameLimits(**(given | changes))
