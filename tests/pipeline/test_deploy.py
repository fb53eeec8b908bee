"""Stages are what the workload says, and leased from the moment that they are loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mdi.model.kv import KvType
from mdi.model.packed import PackedModel
from mdi.node.stage import StageSpec
from mdi.pipeline.deploy import deploy
from mdi.pipeline.problem import Workload
from mdi.plan.plan import BlockRange, Plan, Stage
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

    async def missing(self, refs: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    async def load(self, spec: StageSpec) -> None:
        self.asked = spec
        await self.can_load.wait()

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
    return deploy(plan, nodes, packed, Path(), workload, "tiny", lambda _: None)  # type: ignore[arg-type]


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
    assert [node.unloaded for node in (fast, slow)] == [1, 1]


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
    assert [node.unloaded for node in (fast, slow)] == [1, 1]
