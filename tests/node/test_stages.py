"""What a node holds, for whom, and until when: real packs, an engine that the test opens and ends as it likes."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from mdi.engine.backend import Backend
from mdi.engine.protocol import Engine, StageShape
from mdi.errors import NoRoom, PeerError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.packs import Pack, PackKind, write_pack
from mdi.node.packs import PackStore
from mdi.node.stage import StageSpec
from mdi.node.stages import LEASE_S, MAX_STAGES, Stages
from mdi.wire.ring import RingTarget
from tests.node.test_stage import SPEC, AddOne, frame

DEADLINE_S = 5.0
ME, OTHER = "a" * 32, "b" * 32
GIB = 1 << 30


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (nothing tells when an object is gone)
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Loader(Backend):
    """Makes the smallest engine, once `gate` is open."""

    device: str = "cpu"
    started: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def make_engine(self, config: ModelConfig, packs: Sequence[Pack], shape: StageShape, start: int) -> Engine:
        self.started.set()
        assert self.gate.wait(DEADLINE_S)
        return AddOne()


@dataclass
class Bench:
    """Stages on a device with `available` bytes, whose clock stands still unless it is moved."""

    store: PackStore
    spec: StageSpec
    loader: Loader = field(default_factory=Loader)
    available: int = 64 * GIB
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.stages = Stages(self.store, self.offered, lambda: self.now_s, self.loader)

    def offered(self, used: int, promised: int) -> int:
        return self.available - promised

    def of(self, session: str, epoch: int = 1, starter: str = ME) -> StageSpec:
        return replace(self.spec, target=RingTarget(session, epoch), starter_id=starter)

    async def started(self) -> None:
        assert await asyncio.to_thread(self.loader.started.wait, DEADLINE_S)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    ref = write_pack(tmp_path, PackKind.BLOCK, {"norm": np.zeros(4, np.float32)})
    return Bench(PackStore(tmp_path), replace(SPEC, packs=(ref,)))


async def test_a_starter_that_leaves_while_its_stage_loads_keeps_nothing(bench: Bench) -> None:
    """A load cannot be stopped, so what it takes counts until it has ended; then it is gone."""
    loading = asyncio.create_task(bench.stages.load(bench.of("s")))
    await bench.started()
    loading.cancel()
    await asyncio.sleep(0)
    assert bench.stages.used_bytes == bench.spec.memory_bytes
    bench.loader.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert bench.stages.used_bytes == 0
    assert list(bench.stages) == []
    assert bench.stages.take_dropped()
    await bench.stages.load(bench.of("s"))  # the session may try again


async def test_what_is_loading_is_not_offered_to_another(bench: Bench) -> None:
    """It is not yet missing in what the system has available."""
    bench.available = bench.spec.memory_bytes * 3 // 2
    first = asyncio.create_task(bench.stages.load(bench.of("one")))
    await bench.started()
    with pytest.raises(NoRoom, match="are offered"):
        await bench.stages.load(bench.of("two"))
    bench.loader.gate.set()
    await first


async def test_room_for_a_conversation_that_has_not_grown_yet_is_not_offered_to_another(bench: Bench) -> None:
    """KV takes memory only as it is written, so a new stage's is still available to the system, but no longer free to give."""
    bench.loader.gate.set()
    stage = await bench.stages.load(bench.of("s", epoch=SPEC.target.epoch))
    kv_bytes = SPEC.shape.kv_bytes(SPEC.config, 1)
    assert bench.stages.offered_bytes == bench.available - kv_bytes
    stage.compute(frame())  # 5 of the 2 x 32 tokens
    assert bench.stages.offered_bytes == bench.available - kv_bytes * 59 // 64


@pytest.mark.parametrize("kept", KvType)
async def test_promises_count_kv_in_its_own_type(bench: Bench, kept: KvType) -> None:
    bench.spec = replace(bench.spec, shape=replace(SPEC.shape, kv_type=kept))
    bench.loader.gate.set()
    stage = await bench.stages.load(bench.of("s", epoch=SPEC.target.epoch))
    stage.compute(frame())  # 5 of the 2 x 32 tokens
    values = 2 * SPEC.config.n_kv_heads * SPEC.config.head_dim  # of a token: a key and a value
    # A step expands 64 tokens to fp32, into the kernel and out of it. Accelerators take all of KV when they load.
    wanted = {KvType.FP32: 59 * 4 * values, KvType.INT8: 59 * values + 64 * 2 * 4 * values, KvType.HALF: 0}
    assert bench.stages.promised_bytes == wanted[kept]


async def test_a_stage_is_freed_when_its_lease_is_over_and_not_before(bench: Bench) -> None:
    bench.loader.gate.set()
    await bench.stages.load(bench.of("s"))
    bench.now_s = LEASE_S - 0.1
    assert bench.stages.expire() == []
    with bench.stages.watch("s", ME):
        bench.now_s = 10 * LEASE_S
        assert bench.stages.expire() == []
    bench.now_s += LEASE_S - 0.1
    assert bench.stages.expire() == []
    bench.now_s += 0.1
    assert bench.stages.expire() == ["s"]
    assert bench.stages.used_bytes == 0


async def test_two_watchers_hold_one_lease(bench: Bench) -> None:
    bench.loader.gate.set()
    await bench.stages.load(bench.of("s"))
    with bench.stages.watch("s", ME):
        with bench.stages.watch("s", ME):
            pass
        bench.now_s = 10 * LEASE_S
        assert bench.stages.expire() == []


async def test_a_session_belongs_to_its_starter(bench: Bench) -> None:
    bench.loader.gate.set()
    await bench.stages.load(bench.of("s"))
    refused: list[Callable[[], object]] = [
        lambda: bench.stages.unload("s", OTHER),
        lambda: bench.stages.watch("s", OTHER).__enter__(),
    ]
    for attempt in refused:
        with pytest.raises(PeerError, match="belongs to node aaaaaaaaaaaa"):
            attempt()
    with pytest.raises(PeerError, match="belongs to node"):
        await bench.stages.load(bench.of("s", epoch=2, starter=OTHER))
    assert bench.stages.unload("s", ME)
    assert not bench.stages.unload("s", ME)


async def test_a_newer_epoch_takes_the_place_of_the_older_one(bench: Bench) -> None:
    bench.loader.gate.set()
    await bench.stages.load(bench.of("s", epoch=4))
    for epoch in (3, 4):
        with pytest.raises(PeerError, match="not newer"):
            await bench.stages.load(bench.of("s", epoch=epoch))
    await bench.stages.load(bench.of("s", epoch=5))
    assert bench.stages.used_bytes == bench.spec.memory_bytes
    with pytest.raises(PeerError, match="epoch 4 is over"):
        bench.stages.get(RingTarget("s", 4))
    assert bench.stages.get(RingTarget("s", 5)).stage.spec.target.epoch == 5


async def test_a_session_loads_one_stage_at_a_time_and_a_node_holds_a_bounded_number(bench: Bench) -> None:
    first = asyncio.create_task(bench.stages.load(bench.of("0")))
    await bench.started()
    with pytest.raises(PeerError, match="loading a stage already"):
        await bench.stages.load(bench.of("0", epoch=2))
    bench.loader.gate.set()
    await first
    for number in range(1, MAX_STAGES):
        await bench.stages.load(bench.of(str(number)))
    with pytest.raises(NoRoom, match=f"{MAX_STAGES} stages already"):
        await bench.stages.load(bench.of("one too many"))


async def test_the_engine_of_a_stage_is_gone_when_the_stage_is_freed(bench: Bench) -> None:
    """Even if a call that failed still holds the stage, and before the collector of cycles looks."""
    bench.loader.gate.set()
    stage = await bench.stages.load(bench.of("s", epoch=SPEC.target.epoch))
    gone = weakref.ref(stage._engine)  # type: ignore[arg-type]
    gc.disable()
    try:
        assert isinstance(gone(), AddOne)
        assert not bench.stages.take_dropped()
        assert bench.stages.unload("s", ME)
        await until(lambda: gone() is None)  # the thread that loaded it may be just about to let go of it
        assert bench.stages.take_dropped()
        assert not bench.stages.take_dropped()
    finally:
        gc.enable()
    with pytest.raises(PeerError, match="has ended on this node"):
        stage.compute(frame())
