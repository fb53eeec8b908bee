from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.errors import ModelError
from mdi.model.fields import Fields
from mdi.model.gguf import metadata as bounds
from mdi.model.gguf import types
from mdi.model.gguf.header import MAX_TENSORS, GgufFile
from tests.model.gguf.written import ALIGNMENT, KINDS, Typed, Written, info, key_value, text

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.alignment": ALIGNMENT,
    "a.u8": Typed("u8", 200),
    "a.i8": Typed("i8", -3),
    "a.u16": Typed("u16", 65_000),
    "a.i16": Typed("i16", -30_000),
    "a.i32": Typed("i32", -5),
    "a.f32": 0.5,
    "a.true": True,
    "a.false": False,
    "a.u64": Typed("u64", 1 << 63),
    "a.i64": Typed("i64", -(1 << 62)),
    "a.f64": Typed("f64", 0.1),
    "a.text": "über 🙂",
    "a.texts": ["a", "", "▁b", "\n"],
    "a.empty": Typed("str", []),
    "a.floats": Typed("f32", [0.25, -1.0]),
    "a.ints": [3, 1, 2],
}
TENSORS = {
    "f": (types.F32, (3,), np.arange(3, dtype="<f4").tobytes()),
    "q": (types.Q4_0, (2, 64), bytes(range(72))),
    "h": (types.F16, (2, 3, 4), np.arange(24, dtype="<f2").tobytes()),
}
GOOD = Written(METADATA, TENSORS)
MAX_S = 1.0  # the bound; measured: below 0.02


def opened(tmp_path: Path, data: bytes) -> GgufFile:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return GgufFile.open(path)


def value_of(file: GgufFile, key: str) -> Any:
    """Decoded, whatever it is."""
    value = file.metadata[key]
    return list(value) if isinstance(value, bounds.Texts) else value


def refused(tmp_path: Path, data: bytes, said: str) -> None:
    """Refused with a sentence that names the file, soon, and without taking much memory."""
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with pytest.raises(ModelError, match=said):
            GgufFile.open(path)
        assert time.perf_counter() - began < MAX_S
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", [2, 3])
def test_everything_that_was_written_is_read(tmp_path: Path, version: int) -> None:
    file = opened(tmp_path, Written(METADATA, TENSORS, version=version).bytes())
    for key, value in METADATA.items():
        expected = value.value if isinstance(value, Typed) else value
        found = value_of(file, key)
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == expected
        assert type(found) is type(expected) or isinstance(found, np.ndarray)
    assert list(file.metadata) == list(METADATA)
    assert list(file.tensors) == list(TENSORS)
    for name, (ggml_type, shape, data) in TENSORS.items():
        assert (file.tensors[name].type, file.tensors[name].shape) == (ggml_type, shape)
        assert file.rows(name).tobytes() == data
    assert file.rows("q").shape == (2, 36)


def test_the_gguf_package_reads_what_we_write_and_writes_what_we_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(GOOD.save(tmp_path / "ours.gguf"))
    assert reader.fields["a.texts"].contents() == METADATA["a.texts"]
    assert [tensor.name for tensor in reader.tensors] == list(TENSORS)
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_array("a.texts", ["x", "y"])
    writer.add_float32("a.f32", 0.5)
    writer.add_tensor("w", np.arange(64, dtype=np.float32).reshape(2, 32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    file = GgufFile.open(tmp_path / "theirs.gguf")
    assert (file.metadata.texts("a.texts"), file.metadata["a.f32"]) == (["x", "y"], 0.5)
    assert file.tensors["w"].shape == (2, 32)
    assert np.array_equal(file.rows("w").view("<f4"), np.arange(64).reshape(2, 32))


def test_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = GOOD.bytes()
    needed = len(whole) + len(TENSORS["h"][2]) // ALIGNMENT * ALIGNMENT - len(TENSORS["h"][2])  # the last padding may be absent
    for stop in range(needed):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:stop])
        with pytest.raises(ModelError):
            GgufFile.open(path)


def header(n_tensors: int, n_keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def array(kind: int, count: int, rest: bytes = b"") -> bytes:
    return text("k") + struct.pack("<IIQ", 9, kind, count) + rest


HOSTILE = {
    "nothing": (b"", "is not a GGUF file"),
    "another format": (b"PK\x03\x04" + bytes(100), "is not a GGUF file"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "version 1": (Written({}, version=1).bytes(), "version 1"),
    "version 4": (Written({}, version=4).bytes(), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "more tensors than fit": (header(60_000, 0), "number of tensors is 60000"),
    "more tensors than any model": (header(MAX_TENSORS + 1, 0), "more than"),
    "tensors without end": (header((1 << 64) - 1, 0), "number of tensors"),
    "keys without end": (header(0, (1 << 64) - 1), "number of keys"),
    "more keys than there are": (Written({"a": 1}, n_keys=2).bytes(), "key 1 is empty"),
    "empty tensor name": (header(1, 0, bytes(64)), "the name of tensor 0 is empty"),
    "key without end": (header(0, 1, struct.pack("<QQ", (1 << 64) - 1, 0)), "key 0 is 18446744073709551615 bytes"),
    "key longer than allowed": (header(0, 1, text(b"k" * 65_536) + bytes(16)), "key 0 is 65536 bytes"),
    "key that is no text": (header(0, 1, text(b"\xff\xfe") + bytes(16)), "not UTF-8"),
    "key twice": (header(0, 2, key_value("a", 1) + key_value("a", 2)), "'a' comes twice"),
    "unknown type": (header(0, 1, text("k") + struct.pack("<IQ", 13, 0)), "type 13"),
    "text without end": (header(0, 1, text("k") + struct.pack("<IQ", 8, 1 << 62)), "length of 'k' is"),
    "text beyond the end": (header(0, 1, text("k") + struct.pack("<IQ", 8, 100)), "length of 'k' is 100"),
    "array of arrays": (header(0, 1, array(9, 1, struct.pack("<IQ", 9, 1) * 50)), "array of arrays"),
    "array of nothing known": (header(0, 1, array(77, 1, bytes(99))), "type 77"),
    "array without end": (header(0, 1, array(4, (1 << 64) - 1)), "length of 'k'"),
    "array of bytes beyond the end": (header(0, 1, array(0, 1 << 20)), "length of 'k'"),
    "texts without end": (header(0, 1, array(8, (1 << 64) - 1)), "length of 'k'"),
    "texts beyond the end": (header(0, 1, array(8, 3, text("a") + text("b") + struct.pack("<Q", 9))), "beyond the end"),
    "text in an array that wraps round": (header(0, 1, array(8, 2, struct.pack("<QQ", (1 << 64) - 8, 0))), "beyond the end"),
    "alignment 0": (Written({"general.alignment": 0}).bytes(), "alignment"),
    "alignment 33": (Written({"general.alignment": 33}).bytes(), "alignment"),
    "alignment of 2 GiB": (Written({"general.alignment": 1 << 31}).bytes(), "alignment"),
    "alignment as text": (Written({"general.alignment": "32"}).bytes(), "alignment"),
    "no dimensions": (header(1, 0, info("t", 0, (), 0) + bytes(64)), "0 dimensions"),
    "dimensions without end": (header(1, 0, text("t") + struct.pack("<I", 0xFFFFFFFF) + bytes(99)), "dimensions"),
    "a dimension of 0": (header(1, 0, info("t", 0, (4, 0), 0) + bytes(64)), "impossible shape"),
    "dimensions whose product wraps round": (header(1, 0, info("t", 0, (1 << 32, 1 << 32), 0) + bytes(64)), "impossible shape"),
    "dimensions whose product wraps to a little": (header(1, 0, info("t", 0, ((1 << 63) + 1, 2), 0) + bytes(64)), "impossible"),
    "unknown tensor type": (header(1, 0, info("t", 99, (32,), 0) + bytes(64)), r"model\.gguf.*type 99"),
    "half a block": (header(1, 0, info("t", 2, (2, 33), 0) + bytes(64)), "whole blocks of Q4_0"),
    "tensor name that is no text": (header(1, 0, text(b"\x80") + bytes(64)), "not UTF-8"),
    "tensor name without end": (header(1, 0, text(b"n" * 300) + bytes(64)), "300 bytes"),
    "tensor twice": (header(2, 0, info("t", 0, (4,), 0) * 2 + bytes(96)), "'t' comes twice"),
    "offset beyond the end": (header(1, 0, info("t", 0, (4,), 1 << 40) + bytes(64)), "ends at byte"),
    "offset that wraps round": (header(1, 0, info("t", 0, (4,), (1 << 64) - 32) + bytes(64)), "ends at byte"),
    "offset that is not aligned": (header(1, 0, info("t", 0, (4,), 4) + bytes(96)), "not aligned"),
    "overlapping tensors": (header(2, 0, info("a", 0, (16,), 0) + info("b", 0, (4,), 32) + bytes(128)), "overlaps"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, *HOSTILE[name])


def test_texts_of_all_arrays_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_TEXTS", 5)
    assert len(opened(tmp_path, Written({"a": ["x"] * 3, "b": ["y"] * 2}).bytes()).metadata) == 2
    refused(tmp_path, Written({"a": ["x"] * 3, "b": ["y"] * 3}).bytes(), "more than 5 texts")


def test_bytes_of_all_texts_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_TEXTS_BYTES", 3 * (8 + 5))
    assert len(opened(tmp_path, Written({"a": ["xxxxx"] * 2, "b": ["yyyyy"]}).bytes()).metadata) == 2
    refused(tmp_path, Written({"a": ["xxxxx"] * 2, "b": ["yyyyyy"]}).bytes(), "longer than 39 bytes")


def test_text_that_is_not_utf8_is_refused_when_asked_for(tmp_path: Path) -> None:
    file = opened(tmp_path, Written({"a": b"\xff", "b": "fine"}).bytes())
    assert file.metadata["b"] == "fine"
    with pytest.raises(ModelError, match=r"'a' at byte .* is not UTF-8"):
        _ = file.metadata["a"]


@pytest.mark.parametrize(
    "value", [Typed("str", [""] * (1 << 20)), "x" * (32 << 20)], ids=["an array of a million texts", "a text of 32 MB"]
)
def test_huge_value_in_place_of_a_word_is_refused_at_once(tmp_path: Path, value: Any) -> None:
    metadata = opened(tmp_path, Written({"general.architecture": value}).bytes()).metadata
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with pytest.raises(ModelError, match=r"general\.architecture"):
            Fields(metadata, "a file").text("general.architecture")
        assert time.perf_counter() - began < MAX_S
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_file_that_vanishes_is_named(tmp_path: Path) -> None:
    file = opened(tmp_path, GOOD.bytes())
    file.path.unlink()
    with pytest.raises(ModelError, match=r"model\.gguf cannot be read"):
        file.rows("f")


@pytest.mark.parametrize("method", ["texts", "numbers"])
@pytest.mark.parametrize("key", ["none", "general.architecture", "a.u8"])
def test_array_that_is_not_there_is_named(tmp_path: Path, method: str, key: str) -> None:
    metadata = opened(tmp_path, GOOD.bytes()).metadata
    with pytest.raises(ModelError, match=key):
        getattr(metadata, method)(key)


def test_large_vocabulary_is_parsed_in_a_moment(tmp_path: Path) -> None:
    tokens = [f"token {i}" for i in range(300_000)]
    data = Written({"tokenizer.ggml.tokens": tokens}).bytes()
    began = time.perf_counter()
    file = opened(tmp_path, data)
    assert time.perf_counter() - began < MAX_S
    assert file.metadata.texts("tokenizer.ggml.tokens") == tokens


def survives(path: Path, data: bytes) -> None:
    """Read whole or refused, never anything else."""
    path.write_bytes(data)
    try:
        file = GgufFile.open(path)
        for key in file.metadata:
            _ = value_of(file, key)
    except ModelError:
        return
    assert len(file.data) == len(data)


@settings(max_examples=300)
@given(edits=st.lists(st.tuples(st.integers(0, len(GOOD.bytes()) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD.bytes())
    for at, value in edits:
        data[at] = value
    survives(tmp_path_factory.getbasetemp() / "fuzzed.gguf", bytes(data))


@settings(max_examples=200)
@given(at=st.integers(0, len(GOOD.bytes()) - 8), number=st.integers(0, (1 << 64) - 1))
def test_any_number_in_place_of_any_other_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, number: int
) -> None:
    data = bytearray(GOOD.bytes())
    data[at : at + 8] = struct.pack("<Q", number)
    survives(tmp_path_factory.getbasetemp() / "fuzzed.gguf", bytes(data))


@settings(max_examples=200)
@given(rest=st.binary(max_size=400), n_keys=st.integers(0, 4), n_tensors=st.integers(0, 4))
def test_random_bytes_after_a_header_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rest: bytes, n_keys: int, n_tensors: int
) -> None:
    survives(tmp_path_factory.getbasetemp() / "fuzzed.gguf", header(n_tensors, n_keys, rest))


keys = st.text(min_size=1, max_size=8)
values = st.one_of(
    st.sampled_from([kind for kind in KINDS if kind[0] in "ui"]).flatmap(
        lambda kind: st.integers(*_range(kind)).map(lambda value: Typed(kind, value))
    ),
    st.booleans(),
    st.text(max_size=20),
    st.floats(width=32, allow_nan=False),
    st.lists(st.text(max_size=5), min_size=1, max_size=5),
    st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=5),
)


def _range(kind: str) -> tuple[int, int]:
    bits = int(kind[1:])
    return (0, (1 << bits) - 1) if kind[0] == "u" else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


@given(entries=st.dictionaries(keys, values, max_size=6))
def test_any_metadata_survive_the_round_trip(tmp_path_factory: pytest.TempPathFactory, entries: dict[str, Any]) -> None:
    file = GgufFile.open(Written(entries).save(tmp_path_factory.getbasetemp() / "any.gguf"))
    for key, value in entries.items():
        found = value_of(file, key)
        expected = value.value if isinstance(value, Typed) else value
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == expected
