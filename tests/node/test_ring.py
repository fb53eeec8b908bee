"""A node's servicers behind real mutual TLS: what happens to calls when their stage is freed."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from mdi.cluster.certificates import issue_credentials
from mdi.cluster.identity import Identity
from mdi.cluster.key import ClusterKey
from mdi.engine.thread import EngineThread
from mdi.errors import PeerError
from mdi.node import control
from mdi.node.control import ControlServicer, Me
from mdi.node.dial import Dialler
from mdi.node.measure import Measurer
from mdi.node.messages import reported_steps
from mdi.node.meter import WARM_UP_STEPS
from mdi.node.results import MAX_WAITING_RESULTS
from mdi.node.ring import RingServicer
from mdi.plan.live import StepTimes
from mdi.profile.device import DeviceInfo
from mdi.wire import mdi_pb2 as pb
from mdi.wire.channel import new_server, open_channel, server_credentials, target
from mdi.wire.frame import Row
from mdi.wire.mdi_pb2_grpc import NodeStub, add_NodeServicer_to_server
from mdi.wire.ring import Flow, collect, handlers
from mdi.wire.status import from_rpc_error
from tests.node.test_stage import SPEC, frame
from tests.node.test_stages import Bench, bench, until  # noqa: F401 (fixture)

DEADLINE_S = 10.0
pytestmark = pytest.mark.timeout(60)
KEY, SERVER, STARTER = ClusterKey.generate(), Identity.generate(), Identity.generate()


@dataclass
class Node:
    """A served bench, and a starter's channel to it."""

    bench: Bench
    channel: grpc.aio.Channel
    port: int

    async def load(self) -> weakref.ref[object]:
        """The engine of a stage of the session of SPEC, which is the last one of its ring."""
        self.bench.loader.gate.set()
        stage = await self.bench.stages.load(self.bench.of(SPEC.target.session, SPEC.target.epoch, STARTER.node_id))
        return weakref.ref(stage._engine)  # type: ignore[arg-type]


@asynccontextmanager
async def served(bench: Bench, directory: Path) -> AsyncIterator[Node]:  # noqa: F811
    credentials = issue_credentials(KEY, SERVER)
    with EngineThread() as engine:
        ring = RingServicer(bench.stages, engine, Dialler(credentials))
        me = Me(SERVER.node_id, "pi", DeviceInfo.of_this_device(), 1, time.monotonic(), bench.loader)
        measurer = Measurer(directory, engine, 1, bench.loader)
        server = new_server([handlers(ring.on_flow, ring.on_collect)])
        add_NodeServicer_to_server(ControlServicer(me, bench.stages, bench.store, Dialler(credentials), measurer), server)
        port = server.add_secure_port("127.0.0.1:0", server_credentials(credentials))
        await server.start()
        try:
            async with open_channel(target("127.0.0.1", port), issue_credentials(KEY, STARTER), SERVER.node_id) as channel:
                yield Node(bench, channel, port)
        finally:
            await server.stop(None)


@pytest.fixture
async def node(bench: Bench, tmp_path: Path) -> AsyncIterator[Node]:  # noqa: F811
    async with served(bench, tmp_path / "profiles") as node:
        yield node


async def test_a_flow_ends_and_lets_go_when_its_stage_is_freed(node: Node) -> None:
    """An idle one would otherwise keep the weights of a session that is over, and that no longer count."""
    gone = await node.load()
    flow, results = Flow(node.channel, SPEC.target, "pi"), collect(node.channel, SPEC.target)
    await flow.send(frame())
    assert isinstance(await results.read(), bytes)
    gc.disable()
    try:
        assert node.bench.stages.unload(SPEC.target.session, STARTER.node_id)
        error = await flow.ended
        assert error is not None
        assert isinstance(from_rpc_error(error, "pi"), PeerError)
        assert "has ended on this node" in str(error.details())
        assert await results.read() is grpc.aio.EOF
        await until(lambda: gone() is None)
    finally:
        gc.enable()


async def test_a_flow_whose_results_nobody_takes_lets_go_when_its_stage_is_freed(node: Node) -> None:
    gone = await node.load()
    stage = node.bench.stages.get(SPEC.target).stage
    flow = Flow(node.channel, SPEC.target, "pi")
    for step in range(MAX_WAITING_RESULTS + 1):
        await flow.send(frame(step=step))
    await until(lambda: stage.steps == MAX_WAITING_RESULTS + 1)  # the last result waits for room
    node.bench.now_s = 1e6
    gc.disable()
    try:
        assert node.bench.stages.expire() == [SPEC.target.session]
        await until(lambda: gone() is None)
        error = await flow.ended
        assert error is not None
        assert "has ended on this node" in str(error.details())
    finally:
        gc.enable()


async def test_a_watch_ends_at_once_when_its_stage_is_freed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "STATUS_INTERVAL_S", 10 * DEADLINE_S)
    gone = await node.load()
    call = NodeStub(node.channel).Watch(pb.WatchRequest(session=SPEC.target.session))
    assert (await call.read()).steps == 0
    node.bench.stages.unload(SPEC.target.session, STARTER.node_id)
    gc.disable()
    try:
        with pytest.raises(grpc.aio.AioRpcError, match="has ended on this node"):
            await call.read()
        await until(lambda: gone() is None)
    finally:
        gc.enable()


async def test_a_watch_tells_of_each_step_once_and_info_of_the_speed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "STATUS_INTERVAL_S", 0.01)
    await node.load()
    stage = node.bench.stages.get(SPEC.target).stage
    flow = Flow(node.channel, SPEC.target, "pi")
    watching = NodeStub(node.channel).Watch(pb.WatchRequest(session=SPEC.target.session))
    assert not (await watching.read()).step_times
    sent = WARM_UP_STEPS + 20  # fewer than would wait for a starter that takes no results
    for step in range(sent):
        await flow.send(frame(step, rows=(Row(0, 0, 1, 1),)))
    told: list[StepTimes] = []
    async with asyncio.timeout(DEADLINE_S):
        while sum(each.steps for each in told) < 20:
            told += reported_steps(await watching.read())
        assert not (await watching.read()).step_times
    assert sum(each.steps for each in told) == 20
    assert sum(each.seconds for each in told) == pytest.approx(stage.meter.totals[1].seconds)
    assert {each.rows for each in told} == {1}
    info = await NodeStub(node.channel).Info(pb.InfoRequest())
    assert [each.speed for each in info.stages] == [0.0]  # this node never measured the model
    watching.cancel()
    flow.cancel()


async def test_only_the_starter_of_a_stage_collects_its_results(node: Node) -> None:
    await node.load()
    stranger = issue_credentials(KEY, Identity.generate())
    async with open_channel(target("127.0.0.1", node.port), stranger, SERVER.node_id) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await collect(channel, SPEC.target).read()
    assert "belongs to node" in str(refused.value.details())
