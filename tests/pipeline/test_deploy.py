"""Stages are what the workload says, leased from the moment that they are loaded, and asked for again only when none loads any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mdi.errors import LinkError, NoRoom
from mdi.model.kv import KvType
from mdi.model.packed import PackedModel
from mdi.node.stage import StageSpec
from mdi.pipeline.deploy import UNLOAD_TIMEOUT_S, deploy, free
from mdi.pipeline.problem import Workload
from mdi.plan.plan import BlockRange, Plan, Stage
from mdi.wire.ring import RingTarget
from tests.node.test_stage import SPEC

DEADLINE_S = 10.0


class Node:
    """A peer that has all packs, and whose card may need until `can_load` is set."""

    address = None

    def __init__(self) -> None:
        self.can_load, self.watched = asyncio.Event(), asyncio.Event()
        self.can_load.set()
        self.is_watched = False
        self.unloaded = 0
        self.asked: StageSpec | None = None
        self.refusal: Exception | None = None

    async def missing(self, refs: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    async def load(self, spec: StageSpec) -> None:
        self.asked = spec
        await self.can_load.wait()
        if self.refusal is not None:
            raise self.refusal

    async def watch(self, session: str, on_status: Callable[[Any], None]) -> None:
        self.is_watched = True
        self.watched.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.is_watched = False

    async def unload(self, session: str) -> None:
        self.unloaded += 1


def deployed(nodes: dict[str, Node]) -> Any:
    stages = [Stage("starter", "starter", BlockRange(0, 1), 0)]
    stages += [Stage(name, name, BlockRange(i, i + 1), 0) for i, name in enumerate(nodes, 1)]
    plan: Plan = SimpleNamespace(stages=tuple(stages))  # type: ignore[assignment]
    packed: PackedModel = SimpleNamespace(config=SPEC.config, fmt=SPEC.fmt, blocks=SPEC.packs * len(stages))  # type: ignore[assignment]
    workload: Workload = SimpleNamespace(n_slots=1, ctx=32, chunk_tokens=16, kv_type=KvType.INT8)  # type: ignore[assignment]
    return deploy(plan, RingTarget("session", 1), nodes, packed, Path(), workload, "tiny", lambda _: None)  # type: ignore[arg-type]


async def test_nodes_are_asked_for_the_workloads_type_of_kv() -> None:
    node = Node()
    async with asyncio.timeout(DEADLINE_S), deployed({"node": node}):
        assert node.asked is not None
        assert node.asked.shape.kv_type is KvType.INT8


async def test_a_loaded_stage_is_leased_while_another_node_still_loads() -> None:
    """A slow card takes minutes, and a stage that nobody watches is freed after half of one."""
    fast, slow = Node(), Node()
    slow.can_load.clear()

    async def bring_up() -> None:
        async with deployed({"fast": fast, "slow": slow}):
            assert fast.is_watched
            await slow.watched.wait()

    async with asyncio.timeout(DEADLINE_S):
        bringing_up = asyncio.create_task(bring_up())
        try:
            await fast.watched.wait()
        finally:
            slow.can_load.set()
        await bringing_up
    assert [node.is_watched for node in (fast, slow)] == [False, False]


async def test_a_deployment_that_is_cancelled_ends_its_leases() -> None:
    fast, slow = Node(), Node()
    slow.can_load.clear()
    bringing_up = asyncio.create_task(deployed({"fast": fast, "slow": slow}).__aenter__())
    async with asyncio.timeout(DEADLINE_S):
        await fast.watched.wait()
        bringing_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bringing_up
    assert [node.is_watched for node in (fast, slow)] == [False, False]


async def test_a_deployment_fails_only_when_no_node_is_loading_any_more() -> None:
    """A node that still loads would refuse the next epoch."""
    failing, slow = Node(), Node()
    failing.refusal = NoRoom("it is full")
    slow.can_load.clear()
    bringing_up = asyncio.create_task(deployed({"failing": failing, "slow": slow}).__aenter__())
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(20):
            await asyncio.sleep(0)
        assert slow.asked is not None
        assert not bringing_up.done()
        slow.can_load.set()
        with pytest.raises(NoRoom, match="it is full"):
            await bringing_up
    assert not slow.is_watched


async def test_nodes_are_freed_side_by_side_and_those_that_fail_hold_nobody_up() -> None:
    class Broken(Node):
        async def unload(self, session: str) -> None:
            await super().unload(session)
            raise LinkError("it is gone")

    nodes = [Node(), Broken(), Node()]
    async with asyncio.timeout(UNLOAD_TIMEOUT_S):
        await free(nodes, "session")  # type: ignore[arg-type]
    assert [node.unloaded for node in nodes] == [1, 1, 1]
