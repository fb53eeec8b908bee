from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mdi.engine.backend import ONNX, choose_backend
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.quantise import WeightFormat
from mdi.profile.blocks import BlockTimes
from mdi.profile.cache import MAX_AGE_S, MOST_FILES, ProfileCache

INT4 = WeightFormat(4, 128)


class Clock:
    now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(tmp_path: Path, clock: Clock) -> ProfileCache:
    return ProfileCache(tmp_path / "profiles", clock=clock)


def blocks(cache: ProfileCache, config: ModelConfig, *, ctx: int = 64, refresh: bool = False) -> BlockTimes:
    return cache.blocks(config, INT4, threads=1, ctx=ctx, chunk_tokens=16, refresh=refresh)


def files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "profiles").iterdir())


# Two real measurements never agree to the last bit, so equality shows that the second one did not happen.


def test_what_was_measured_is_remembered(cache: ProfileCache, tiny: ModelConfig, tmp_path: Path, clock: Clock) -> None:
    first = blocks(cache, tiny)
    assert blocks(ProfileCache(tmp_path / "profiles", clock=clock), tiny) == first
    assert cache.head(tiny, INT4, threads=1) == cache.head(tiny, INT4, threads=1)
    assert cache.device(1) == cache.device(1)
    assert len(files(tmp_path)) == 3


def test_what_is_known_is_told_without_measuring(cache: ProfileCache, tiny: ModelConfig, clock: Clock) -> None:
    def known(ctx: int = 64) -> BlockTimes | None:
        return cache.known_blocks(tiny, INT4, threads=1, ctx=ctx, chunk_tokens=16, kv_type=KvType.FP32)

    assert known() is None
    first = blocks(cache, tiny)
    assert (known(), known(ctx=9)) == (first, None)
    assert cache.n_measured == 1
    clock.now_s += MAX_AGE_S + 1
    assert known() is None


def test_refresh_measures_again_and_remembers_that(cache: ProfileCache, tiny: ModelConfig) -> None:
    first = blocks(cache, tiny)
    second = blocks(cache, tiny, refresh=True)
    assert second != first
    assert blocks(cache, tiny) == second


def test_old_entries_and_those_of_the_future_are_measured_again(cache: ProfileCache, tiny: ModelConfig, clock: Clock) -> None:
    first = blocks(cache, tiny)
    clock.now_s += MAX_AGE_S
    assert blocks(cache, tiny) == first
    clock.now_s += 1
    second = blocks(cache, tiny)
    assert second != first
    clock.now_s -= 3600  # a board without a clock battery starts in the past
    assert blocks(cache, tiny) != second


def test_entries_are_shared_by_what_runs_alike_and_by_nothing_else(
    cache: ProfileCache, tiny: ModelConfig, tmp_path: Path
) -> None:
    first = blocks(cache, tiny, ctx=60)
    assert blocks(cache, replace(tiny, eos_ids=(3,), norm_eps=1e-6), ctx=64) == first
    assert blocks(cache, replace(tiny, d_ffn=192)) != first
    assert blocks(cache, tiny, ctx=65) != first
    assert cache.blocks(tiny, INT4, threads=2, ctx=64, chunk_tokens=16) != first
    assert cache.blocks(tiny, INT4, threads=1, ctx=64, chunk_tokens=8) != first
    assert cache.blocks(tiny, INT4, threads=1, ctx=64, chunk_tokens=16, kv_type=KvType.INT8) != first
    assert cache.blocks(tiny, WeightFormat(8, 128), threads=1, ctx=64, chunk_tokens=16) != first
    assert len(files(tmp_path)) == 7


def test_each_device_and_version_of_its_runtime_has_its_own_entries(tiny: ModelConfig, tmp_path: Path) -> None:
    directory = tmp_path / "profiles"
    torch = choose_backend("torch-cpu")
    caches = [ProfileCache(directory, backend=each) for each in (ONNX, torch, replace(torch, runtime="2.0"))]
    found = [blocks(cache, tiny) for cache in caches]
    assert len(files(tmp_path)) == 3
    assert [blocks(cache, tiny) for cache in caches] == found


def damaged_entries(text: str) -> list[str]:
    entry = json.loads(text)
    value = entry["value"]
    return [
        "",
        text[: len(text) // 2],
        "[1]",
        "{}",
        json.dumps(entry | {"key": None}),
        json.dumps(entry | {"measured_at": "today"}),
        json.dumps(entry | {"value": value | {"decode": {"overhead_s": "0", "block_s": 1}}}),
        json.dumps(entry | {"value": value | {"decode": {"overhead_s": 0, "block_s": -1}}}),
        json.dumps(entry | {"value": value | {"decode": {"overhead_s": 0}}}),
        json.dumps(entry | {"value": value | {"decode": None}}),
        json.dumps(entry | {"value": value | {"chunk_tokens": "many"}}),
    ]


def test_a_damaged_file_is_measured_again_and_replaced(cache: ProfileCache, tiny: ModelConfig, tmp_path: Path) -> None:
    blocks(cache, tiny)
    (path,) = files(tmp_path)
    for text in damaged_entries(path.read_text()):
        path.write_text(text)
        again = blocks(cache, tiny)
        assert path.read_text() != text
        assert blocks(cache, tiny) == again
    path.write_bytes(b"\xff\xfe")
    assert blocks(cache, tiny) == blocks(cache, tiny)


def test_the_oldest_files_are_dropped(cache: ProfileCache, tiny: ModelConfig, tmp_path: Path) -> None:
    directory = tmp_path / "profiles"
    directory.mkdir()
    for i in range(MOST_FILES + 5):
        path = directory / (f".partial-{i}" if i % 2 else f"{i}.json")
        path.touch()
        os.utime(path, (i, i))
    (directory / "notes.txt").touch()
    first = blocks(cache, tiny)
    names = {path.name for path in files(tmp_path)} - {"notes.txt"}
    assert len(names) == MOST_FILES
    assert names.isdisjoint({"0.json", ".partial-1", "2.json", ".partial-3", "4.json", ".partial-5"})
    assert (directory / "notes.txt").exists()
    assert blocks(cache, tiny) == first


def test_a_directory_that_cannot_be_made_only_costs_time(tiny: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert blocks(ProfileCache(tmp_path / "file" / "profiles"), tiny).decode.block_s > 0
