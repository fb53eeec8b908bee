from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mdi.errors import ModelError
from mdi.model.gguf import types
from mdi.model.gguf.files import Gguf, find, model_name
from tests.model.gguf.written import Typed, Written

Change = Callable[[dict[int, Written]], None]


def part(number: int, count: int, names: str, n_tensors: int = 4) -> Written:
    split = {
        "split.no": Typed("u16", number),
        "split.count": Typed("u16", count),
        "split.tensors.count": Typed("i32", n_tensors),
    }
    general = {"general.architecture": "llama", "a": 7} if number == 0 else {}
    return Written(general | split, {name: (types.F32, (2,), name.encode() * 8) for name in names})


def three() -> dict[int, Written]:
    return {0: part(0, 3, "ab"), 1: part(1, 3, "c"), 2: part(2, 3, "d")}


def save(directory: Path, parts: dict[int, Written]) -> list[Path]:
    return [written.save(directory / f"m-{number + 1:05}-of-00003.gguf") for number, written in parts.items()]


def test_split_model_is_one_whatever_part_is_named(tmp_path: Path) -> None:
    for path in save(tmp_path, three()):
        gguf = Gguf.open(path)
        assert (gguf.path.name, gguf.architecture, gguf.fields.integer("a")) == ("m-00001-of-00003.gguf", "llama", 7)
        assert list(gguf.tensors) == ["a", "b", "c", "d"]
        assert [gguf.rows(name).tobytes() for name in "abcd"] == [name.encode() * 8 for name in "abcd"]
        assert gguf.info("e") is None
    assert model_name(path) == "m"
    assert find(tmp_path) == tmp_path / "m-00001-of-00003.gguf"


def test_gguf_that_the_gguf_package_splits_is_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    np = pytest.importorskip("numpy")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama", split_max_tensors=2)
    for name in "abcde":
        writer.add_tensor(name, np.full((2, 32), ord(name), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    opened = Gguf.open(tmp_path / "x-00001-of-00003.gguf")
    assert len(opened.parts) == 3
    assert [float(opened.rows(name).view("<f4")[1, 31]) for name in "abcde"] == [ord(name) for name in "abcde"]


def swap(parts: dict[int, Written]) -> None:
    parts[1], parts[2] = parts[2], parts[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: parts.pop(1), "lacks m-00002-of-00003.gguf: a split"),
        (lambda parts: [parts.pop(1), parts.pop(2)], "lacks m-00002-of-00003.gguf and 1 more"),
        (swap, "calls itself part 3 of 3, but its name says 2 of 3"),
        (lambda parts: parts.update({1: part(1, 4, "c")}), "part 2 of 4"),
        (lambda parts: parts.update({2: part(2, 3, "a")}), "same tensor twice"),
        (lambda parts: parts.update({0: part(0, 3, "ab", 9)}), "means 9 tensors, but its parts hold 4"),
        (lambda parts: parts.update({1: Written({}, {})}), "split.no"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, change: Change, said: str) -> None:
    parts = three()
    change(parts)
    save(tmp_path, parts)
    with pytest.raises(ModelError, match=said):
        Gguf.open(tmp_path / "m-00001-of-00003.gguf")


@pytest.mark.parametrize("name", ["m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-00001-of-99999.gguf"])
def test_impossible_part_is_refused(tmp_path: Path, name: str) -> None:
    part(0, 3, "a").save(tmp_path / name)
    with pytest.raises(ModelError, match="not possible"):
        Gguf.open(tmp_path / name)


def test_part_under_another_name_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its name says 1 of 1"):
        Gguf.open(part(0, 3, "a").save(tmp_path / "renamed.gguf"))


def test_directory_holds_one_model_several_or_none(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    save(tmp_path, three())
    Written({}).save(tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"2 GGUF models: m-00001-of-00003\.gguf, other\.gguf"):
        find(tmp_path)


def test_fingerprint_stands_for_header_and_data(tmp_path: Path) -> None:
    path = part(0, 1, "ab", 2).save(tmp_path / "m.gguf")
    first = Gguf.open(path).fingerprint()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(path, tmp_path / "elsewhere" / "n.gguf")
    assert Gguf.open(tmp_path / "elsewhere" / "n.gguf").fingerprint() == first
    data = bytearray(path.read_bytes())
    data[-28] ^= 1  # in the last tensor
    path.write_bytes(data)
    assert Gguf.open(path).fingerprint() != first
    part(0, 1, "ac", 2).save(path)
    assert Gguf.open(path).fingerprint() != first
