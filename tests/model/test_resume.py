"""A conversion that is killed goes on with the parts that it made."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mdi.model.checkpoint import Checkpoint
from mdi.model.packed import PackedModel, prepare
from mdi.model.packs import verify
from mdi.model.quantise import WeightFormat
from mdi.model.resume import PartLog
from tests.checkpoints import make_checkpoint

FMT = WeightFormat(4, 32)
N_PARTS = 5  # embedding, three blocks, head


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> PackedModel:
    return prepare(Checkpoint.open(checkpoint), FMT, checkpoint.parent / "whole")


# Converts in a process of its own, which kills itself when that many parts are done.
KILLED = """
import os, signal, sys
from pathlib import Path
from mdi.model.checkpoint import Checkpoint
from mdi.model.packed import prepare
from mdi.model.quantise import WeightFormat

def progress(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

prepare(Checkpoint.open(Path(sys.argv[1])), WeightFormat(4, 32), Path(sys.argv[2]), progress)
"""


@pytest.mark.parametrize("parts", [1, 3, N_PARTS])
def test_a_killed_conversion_goes_on_where_it_was(checkpoint: Path, whole: PackedModel, parts: int, tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", KILLED, str(checkpoint), str(tmp_path), str(parts)], check=False)
    assert child.returncode == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(before) == parts
    seen: list[tuple[int, int]] = []
    packed = prepare(Checkpoint.open(checkpoint), FMT, tmp_path, lambda done, total: seen.append((done, total)))
    assert packed == whole
    assert seen == [(done, N_PARTS) for done in range(N_PARTS + 1)]
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert before.items() <= after.items()  # nothing was written again
    assert sorted(after) == sorted(ref.filename for ref in whole.refs)
    assert all(verify(tmp_path / ref.filename, ref) for ref in packed.refs)
    assert [path for path in tmp_path.iterdir() if path.suffix not in (".safetensors", ".json")] == []


def test_a_part_that_is_gone_or_cut_is_made_again(checkpoint: Path, whole: PackedModel, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_at_the_head(done: int, total: int) -> None:
        if done == total - 1:
            raise Stop

    with pytest.raises(Stop):
        prepare(Checkpoint.open(checkpoint), FMT, tmp_path, stop_at_the_head)
    (tmp_path / whole.blocks[0].filename).unlink()
    with (tmp_path / whole.blocks[1].filename).open("r+b") as file:
        file.truncate(100)
    (log,) = tmp_path.glob("*.parts")
    with log.open("a") as file:
        file.write('["block 9", "cut')
    assert set(PartLog(log).made) == {"embedding", "block 2"}
    assert prepare(Checkpoint.open(checkpoint), FMT, tmp_path) == whole
    assert all(verify(tmp_path / ref.filename, ref) for ref in whole.refs)


def test_formats_are_remembered_apart(checkpoint: Path, whole: PackedModel, tmp_path: Path) -> None:
    first = prepare(Checkpoint.open(checkpoint), FMT, tmp_path)
    other = prepare(Checkpoint.open(checkpoint), WeightFormat(8, 32), tmp_path)
    assert first == whole
    assert other.blocks != whole.blocks
    assert prepare(Checkpoint.open(checkpoint), FMT, tmp_path) == whole
