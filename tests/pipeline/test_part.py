"""The starter's own blocks change with the plan, and never lie in memory twice."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from mdi.engine.backend import Backend
from mdi.engine.protocol import Engine, StageShape
from mdi.errors import NoRoom
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.packs import Pack
from mdi.pipeline import part as own
from mdi.pipeline.part import OwnPart
from mdi.plan.plan import BlockRange
from tests.node.test_stage import CONFIG, AddOne


@dataclass(frozen=True)
class Loader(Backend):
    """Remembers what is alive when it loads."""

    device: str = "cpu"
    made: list[weakref.ref[Engine]] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)
    is_full: list[bool] = field(default_factory=list)

    def make_head(self, config: ModelConfig, pack: Pack, threads: int) -> object:
        return object()

    def make_engine(self, config: ModelConfig, packs: Sequence[Pack], shape: StageShape, start: int) -> Engine:
        self.alive.append(sum(engine() is not None for engine in self.made))
        if self.is_full:
            raise NoRoom("the device is full")
        engine = AddOne()
        self.made.append(weakref.ref(engine))
        return engine


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def part(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> OwnPart:
    pack = SimpleNamespace(filename="pack")
    packed = SimpleNamespace(config=CONFIG, head=pack, embedding=pack)
    for name in ("open_pack", "open_packs", "Embedding"):
        monkeypatch.setattr(own, name, lambda *_: None)
    workload = SimpleNamespace(n_slots=1, ctx=32, kv_type=KvType.FP32)
    return OwnPart(packed, Path(), workload, loader, 1)  # type: ignore[arg-type]


def test_the_old_blocks_are_gone_before_the_new_ones_are_loaded(part: OwnPart, loader: Loader) -> None:
    gc.disable()
    try:
        for blocks in (BlockRange(0, 1), BlockRange(0, 3), BlockRange(0, 2)):
            assert part.load(blocks) is loader.made[-1]()
    finally:
        gc.enable()
    assert loader.alive == [0, 0, 0]


def test_the_same_blocks_are_not_loaded_again(part: OwnPart, loader: Loader) -> None:
    first = part.load(BlockRange(0, 2))
    assert part.load(BlockRange(0, 2)) is first
    assert len(loader.made) == 1


def test_no_blocks_are_no_engine(part: OwnPart, loader: Loader) -> None:
    assert part.load(BlockRange(0, 0)) is None
    part.load(BlockRange(0, 2))
    assert part.load(BlockRange(0, 0)) is None
    assert [engine() for engine in loader.made] == [None]


def test_blocks_that_could_not_be_loaded_are_tried_again(part: OwnPart, loader: Loader) -> None:
    part.load(BlockRange(0, 1))
    loader.is_full.append(True)
    with pytest.raises(NoRoom):
        part.load(BlockRange(0, 2))
    loader.is_full.clear()
    assert part.load(BlockRange(0, 2)) is loader.made[-1]()
