"""When the starter looks, whom it asks, and who waits: with an epoch that only remembers what it was told."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from mdi.errors import ClusterError, MdiError
from mdi.node.messages import step_times_messages
from mdi.node.meter import Meter
from mdi.pipeline.adaptive import STATUS_INTERVAL_S, Adaptive, goal_of
from mdi.pipeline.api import StarterOptions
from mdi.pipeline.epochs import Choice, Wish
from mdi.plan.adapt import REPLAN_INTERVAL_S, Goal
from mdi.plan.costs import Problem
from mdi.plan.live import StepTimes
from mdi.plan.plan import BlockRange
from mdi.plan.wishes import Pin, Wishes
from mdi.wire import mdi_pb2 as pb
from tests.plan.conftest import _home

DEADLINE_S = 10.0


@dataclass
class Cluster:
    """Epochs and Drive in one: `gone` nodes do not answer."""

    costs: Problem
    now_s: float = 0.0
    gone: set[str] = field(default_factory=set)
    failure: MdiError | None = None
    wishes: list[Wish] = field(default_factory=list)
    surveys: int = 0
    may_change: asyncio.Event = field(default_factory=asyncio.Event)
    joining: Problem | None = None
    met: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_change.set()
        self._go_on(Choice(self.costs, Goal().best(self.costs)))

    def _go_on(self, choice: Choice) -> None:
        self.choice = choice
        workers = [SimpleNamespace(stage=stage, last_status={}) for stage in choice.plan.stages[1:]]
        self.deployment = SimpleNamespace(workers=workers)

    async def available(self) -> Problem:
        self.surveys += 1
        return replace(self.costs, nodes=tuple(node for node in self.costs.nodes if node.node_id not in self.gone))

    async def welcome(self) -> None:
        self.met.append("begun")
        if self.joining is not None:
            self.costs = self.joining
        else:
            await asyncio.Event().wait()
        self.met.append("ended")

    async def change(self, wish: Wish) -> None:
        await self.may_change.wait()
        if self.failure is not None:
            raise self.failure
        self.wishes.append(wish)
        assert wish.choice is not None
        self._go_on(wish.choice)

    def work(self, node_id: str, factor: float) -> None:
        """A status of a worker that was so many times as slow as measured."""
        (worker,) = [worker for worker in self.deployment.workers if worker.stage.node_id == node_id]
        step_s = self.costs.decode_time(self.costs.index(node_id), 1, 128).seconds(len(worker.stage.blocks))
        worker.last_status["status"] = pb.NodeStatus(
            step_times=step_times_messages([StepTimes(1, 50, 128, 50 * factor * step_s)])
        )


def started(cluster: Cluster, options: StarterOptions | None = None) -> Adaptive:
    part: Any = SimpleNamespace(blocks=Meter(), logits=Meter())
    workload: Any = SimpleNamespace(config=SimpleNamespace(d_model=64))
    adaptive = Adaptive(cluster, options or StarterOptions(), part, workload, lambda: cluster.now_s)  # type: ignore[arg-type]
    adaptive._drive = cluster  # type: ignore[assignment]
    return adaptive


def house() -> Problem:
    """All blocks but one are best on the attic; the shed is half as fast."""
    return _home(("desk", 1.5, 4.0), ("attic", 4, 1.0), ("shed", 4, 2.0))


def hear(adaptive: Adaptive, cluster: Cluster, node_id: str, factor: float, statuses: int = 5) -> None:
    for _ in range(statuses):
        cluster.work(node_id, factor)
        cluster.now_s += STATUS_INTERVAL_S
        adaptive._hear()


async def test_a_plan_changes_between_answers_and_not_within_one() -> None:
    adaptive = started(cluster := Cluster(house()))
    async with adaptive.answering():
        hear(adaptive, cluster, "id-attic", 4.0)
        async with adaptive.answering():  # one beside it
            pass
        assert cluster.wishes == []
    async with adaptive.answering():
        (wish,) = cluster.wishes
        assert wish.reason.startswith("attic slowed to 0.25x; ")
        assert [stage.name for stage in cluster.choice.plan.stages] == ["desk", "shed"]
        assert [change.sentence for change in adaptive.changes] == [wish.reason]


async def test_an_answer_waits_for_a_change_that_is_on_its_way() -> None:
    adaptive = started(cluster := Cluster(house()))
    hear(adaptive, cluster, "id-attic", 4.0)
    cluster.may_change.clear()
    looking = asyncio.create_task(adaptive._look())
    begun = asyncio.Event()

    async def answer() -> None:
        async with adaptive.answering():
            begun.set()

    async with asyncio.timeout(DEADLINE_S):
        answering = asyncio.create_task(answer())
        await asyncio.sleep(0.05)
        assert not begun.is_set()
        cluster.may_change.set()
        await asyncio.gather(looking, answering)
    assert len(cluster.wishes) == 1


async def test_nobody_is_asked_while_the_plan_is_good() -> None:
    adaptive = started(cluster := Cluster(house()))
    hear(adaptive, cluster, "id-attic", 1.1)
    await adaptive._look()
    assert (cluster.surveys, cluster.wishes) == (0, [])


async def test_within_a_minute_of_a_change_there_is_no_other() -> None:
    adaptive = started(cluster := Cluster(house()))
    hear(adaptive, cluster, "id-attic", 4.0)
    await adaptive._look()
    changed_s = cluster.now_s
    hear(adaptive, cluster, "id-shed", 40.0)
    await adaptive._look()
    assert cluster.now_s - changed_s < REPLAN_INTERVAL_S
    assert len(cluster.wishes) == 1
    hear(adaptive, cluster, "id-shed", 40.0, statuses=30)
    await adaptive._look()
    assert len(cluster.wishes) == 2
    assert "shed slowed to" in cluster.wishes[1].reason
    assert [stage.name for stage in cluster.choice.plan.stages] == ["desk", "attic"]  # as slow as it was, it is the better one


async def test_blocks_do_not_move_to_a_node_that_does_not_answer() -> None:
    adaptive = started(cluster := Cluster(house()))
    cluster.gone.add("id-shed")
    hear(adaptive, cluster, "id-attic", 4.0)
    await adaptive._look()
    assert (cluster.surveys, cluster.wishes) == (1, [])
    cluster.gone.add("id-attic")  # of the plan: its failure is somebody else's matter
    hear(adaptive, cluster, "id-attic", 9.0)
    await adaptive._look()
    assert cluster.wishes == []


async def test_a_change_that_fails_leaves_everything_and_is_not_tried_again_at_once(caplog: pytest.LogCaptureFixture) -> None:
    adaptive = started(cluster := Cluster(house()))
    hear(adaptive, cluster, "id-attic", 4.0)
    before, cluster.failure = cluster.choice, ClusterError("no room")
    with caplog.at_level(logging.WARNING):
        await adaptive._look()
    assert "the plan did not change: no room" in caplog.text
    cluster.failure = None
    hear(adaptive, cluster, "id-attic", 4.0)
    await adaptive._look()
    assert (cluster.choice, cluster.wishes, list(adaptive.changes)) == (before, [], [])


async def test_a_status_that_cannot_be_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    adaptive = started(cluster := Cluster(house()))
    with caplog.at_level(logging.INFO, logger="mdi.pipeline.adaptive"):
        for _ in range(9):
            wrong = pb.NodeStatus(step_times=[pb.StepTimes(rows=1, steps=9, seconds=-1.0)])
            cluster.deployment.workers[0].last_status["status"] = wrong
            adaptive._hear()
    assert "is ignored" in caplog.text
    await adaptive._look()
    assert cluster.wishes == []


async def test_one_status_counts_once_however_often_it_is_seen() -> None:
    adaptive = started(cluster := Cluster(house()))
    cluster.work("id-attic", 4.0)
    for _ in range(20):
        adaptive._hear()
    assert adaptive._live.factors(0.0).decode("id-attic") is None


async def test_who_joins_is_met_between_answers_and_used() -> None:
    everybody = house()
    alone = replace(everybody, nodes=everybody.nodes[::2])  # desk and shed
    adaptive = started(cluster := Cluster(alone))
    cluster.joining = everybody
    await adaptive._meet()
    await adaptive._look()
    (wish,) = cluster.wishes
    assert wish.reason.startswith("attic joined; ")


async def test_meeting_ends_when_an_answer_begins() -> None:
    adaptive = started(cluster := Cluster(house()))
    async with asyncio.timeout(DEADLINE_S):
        meeting = asyncio.create_task(adaptive._meet())
        await asyncio.sleep(0)
        async with adaptive.answering():
            await meeting
    assert cluster.met == ["begun"]


async def test_after_a_failure_too_plans_are_made_of_what_traffic_shows() -> None:
    adaptive = started(cluster := Cluster(house()))
    hear(adaptive, cluster, "id-attic", 4.0)
    shown: Problem = cluster.shown(cluster.costs)  # type: ignore[attr-defined]
    assert shown.nodes[1].decode.block_s == pytest.approx(4.0 * cluster.costs.nodes[1].decode.block_s)


def test_wishes_bind_as_far_as_their_nodes_are_here() -> None:
    problem = house()
    pins = (Pin("attic", BlockRange(1, 2)), Pin("cellar", BlockRange(3, 4)))
    options = StarterOptions(wishes=Wishes(pins), min_nodes=9)
    assert goal_of(problem, options) == Goal(options.objective, 3, options.mixed_share, pins[:1])
