"""Plans follow the speed of real daemons, and use those that join. What is asserted is what was decided and answered, never how fast."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mdi.pipeline import adaptive
from mdi.pipeline.starter import draw_plan, open_starter
from mdi.pipeline.survey import list_nodes
from tests.cluster.conftest import N_BLOCKS, House
from tests.cluster.test_run import ask, options

STATUS_S = 0.2
DEADLINE_S = 120.0  # of what takes about two seconds
# A daemon that tells of its steps more often, and whose engine takes 30 ms longer for each while the file of this name is there.
SLOWED = """
import pathlib, time
import mdi.node.control
from mdi.engine.onnx_engine import OnnxEngine
mdi.node.control.STATUS_INTERVAL_S = {status_s}
flag, forward = pathlib.Path({flag!r}), OnnxEngine.forward
def slow(self, spans, hidden):
    until = time.perf_counter() + 0.03 * flag.exists()
    result = forward(self, spans, hidden)
    while time.perf_counter() < until:
        pass
    return result
OnnxEngine.forward = slow
"""


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.setattr(adaptive, "STATUS_INTERVAL_S", STATUS_S)
    monkeypatch.setattr(adaptive, "TICK_S", STATUS_S / 2)
    return lambda name: tmp_path / f"{name} is slow"


def slowed(flag: Path) -> str:
    return SLOWED.format(status_s=STATUS_S, flag=str(flag))


async def until(condition: Callable[[], bool], meanwhile: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await meanwhile()


async def test_blocks_leave_a_node_that_slows_and_the_answers_stay_the_same(
    house: House, model: Path, flags: Callable[[str], Path]
) -> None:
    daemons = [house.start(name, before=slowed(flags(name))) for name in ("one", "two")]
    home = house.home("starter")
    cap = (await draw_plan(options(model), home, lambda _: None)).problem.bytes_needed(0, 2)
    told: list[str] = []
    async with open_starter(
        options(model, *daemons, max_memory_bytes=cap), home, lambda progress: told.append(progress.label)
    ) as starter:
        expected = (await ask(starter)).token_ids
        before = starter.plan
        slow = before.stages[-1].name
        assert len(before.stages[-1].blocks) >= 2
        flags(slow).touch()

        async def answer() -> None:
            assert (await ask(starter)).token_ids == expected

        await until(lambda: bool(starter.changes), answer)
        (change,) = starter.changes
        assert change.reason.startswith(f"{slow} slowed to 0.")
        assert change.sentence.endswith("tok/s")
        assert any(label.startswith(change.sentence) for label in told)
        held = {stage.name: len(stage.blocks) for stage in starter.plan.stages}
        assert held.get(slow, 0) == 0
        assert sum(change.moved.values()) == len(before.stages[-1].blocks)
        await answer()
        assert (await starter.stage_steps()).keys() == held.keys()
        rows = (await list_nodes(home, tuple(daemon.address for daemon in daemons), discovery=False, wait_s=0.1)).rows
        stages = {row.name: len(row.stages) for row in rows}
        assert stages == {name: int(name != slow) for name in ("one", "two")}


async def test_a_split_by_hand_stays_however_slow_it_is(house: House, model: Path, flags: Callable[[str], Path]) -> None:
    one = house.start("one", before=slowed(flags("one")))
    home = house.home("starter")
    async with open_starter(options(model, one, split=(2, 3)), home, lambda _: None) as starter:
        flags("one").touch()  # not before: what a slow device measured of itself is no news

        def known() -> bool:
            return (starter._adaptive._live.factors(0.0).decode(one.node.node_id) or 0.0) > 2

        await until(known, lambda: ask(starter))
        await ask(starter)
        assert starter.changes == ()
        assert starter.plan.counts == (2, 3)
        rows = (await list_nodes(home, (one.address,), discovery=False, wait_s=0.1)).rows
        assert rows[0].stages[0].speed is not None
        assert 0 < rows[0].stages[0].speed < 0.5


async def test_a_node_that_joins_between_answers_is_used(
    house: House, model: Path, flags: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The starter is slow, so that a second device helps; nobody asks for anything when it comes."""
    monkeypatch.setattr(adaptive, "MEET_INTERVAL_S", STATUS_S)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    one = house.start("one", before=slowed(flags("one")))
    home = house.home("starter")
    home.write_peers((f"127.0.0.1:{port}",))
    cap = (await draw_plan(options(model), home, lambda _: None)).problem.bytes_needed(0, 1)
    async with open_starter(options(model, one, max_memory_bytes=cap), home, lambda _: None) as starter:
        expected = (await ask(starter)).token_ids
        assert starter.plan.counts == (1, N_BLOCKS - 1)
        flags("one").touch()

        async def quiet() -> None:
            await asyncio.sleep(STATUS_S)

        async def answer() -> None:
            assert (await ask(starter)).token_ids == expected

        def known() -> bool:
            return (starter._adaptive._live.factors(0.0).decode(one.node.node_id) or 0.0) > 2

        await until(known, answer)
        assert starter.changes == ()  # there is nowhere to go
        await asyncio.to_thread(house.start, "two", "--port", str(port), before=slowed(flags("two")))
        await until(lambda: bool(starter.changes), quiet)
        (change,) = starter.changes
        assert "two joined" in change.reason
        assert [stage.name for stage in starter.plan.stages if len(stage.blocks)][-1] == "two"
        await answer()
