"""Epochs: one plan after another under the same conversations. `change` is the one way from a plan to the next.

    change plan → new epoch → replay

A failure takes it, and so does whoever wishes for another plan while all is well. An epoch's streams, leases and stages are its own;
tokens, and what was measured, belong to no epoch. Which nodes are out is decided in `recovery.py`, which plan is left in `choice.py`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mdi.engine.protocol import Engine
from mdi.engine.thread import EngineThread
from mdi.errors import InternalError, MdiError
from mdi.model.packed import PackedModel
from mdi.node.threads import in_thread
from mdi.pipeline.api import OnProgress, Progress, StarterOptions
from mdi.pipeline.choice import among, plan_of_those_left
from mdi.pipeline.core import StarterCore
from mdi.pipeline.deploy import Deployment, deploy, first_error, free
from mdi.pipeline.part import OwnPart
from mdi.pipeline.peer import Peer
from mdi.pipeline.problem import Workload
from mdi.pipeline.recovery import FailureLog, Hop, Recovery, Verdict, going_on, sentence, stalled
from mdi.pipeline.ring import Ring, open_ring
from mdi.pipeline.survey import House, look_again
from mdi.plan.costs import Problem
from mdi.plan.forecast import Forecast, steps_in_flight
from mdi.plan.plan import BlockRange, Plan, Stage
from mdi.wire import mdi_pb2 as pb
from mdi.wire.frame import FrameLimits
from mdi.wire.ring import RingTarget

# A node that answers nothing for so long, when asked how it is, is out. Its loop is free while it computes, and a round trip of 300 ms
# with a new connection takes 1.2 s.
PROBE_TIMEOUT_S = 1.5
MAX_RECOVERIES = 256  # remembered, the latest: a node that fails once a minute fills four hours

STEP_TIMEOUT_FLOOR_S = 10.0
STEP_TIMEOUT_FACTOR = (
    30.0  # of the predicted time of a whole prefill step: a device that throttles to a tenth is slow, not dead
)

Correct = Callable[[Problem], Problem]


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan and the problem that it solves."""

    problem: Problem
    plan: Plan


@dataclass(frozen=True, slots=True)
class Wish:
    """A change of plan that no failure forces. `reason` is told to the user with who goes on; `choice` None: the best one now."""

    reason: str
    choice: Choice | None = None


Cause: TypeAlias = MdiError | Wish


@dataclass(frozen=True, slots=True)
class Setting:
    """What all epochs of a starter have in common."""

    house: House
    options: StarterOptions
    workload: Workload
    packed: PackedModel
    packs: Path
    model: str


@dataclass(frozen=True, slots=True)
class _Noticed:
    """A failure whose recovery is on its way."""

    node: str | None
    reason: str
    at_s: float


class Epochs:
    """One task at a time calls `begin`, `change` and `close`: the one that drives the ring, so no step runs meanwhile.

    `measured` is what the first plan was made of; `measure` draws it anew, and is asked only when a node came that was never measured.
    """

    def __init__(
        self,
        setting: Setting,
        measured: Problem,
        part: OwnPart,
        core: StarterCore,
        engine: EngineThread,
        measure: Callable[[], Awaitable[Problem]],
        on_progress: OnProgress,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._setting = setting
        self._costs = measured
        self._part = part
        self._core = core
        self._engine = engine
        self._measure = measure
        self._on_progress = on_progress
        self._now_s = now_s
        self._target = RingTarget(secrets.token_hex(8), 0)
        self._log = FailureLog()
        self._open = AsyncExitStack()  # the running epoch's streams and leases
        self._met: set[str] = set()  # nodes that were measured by `welcome`, among them those that no plan may use
        self._holders: dict[str, Peer] = {}  # nodes that may hold a stage of this session
        self._plan: Plan | None = None
        self._choice: Choice | None = None
        self.deployment = Deployment(self._target, ())
        self.recoveries: list[Recovery] = []
        self.shown: Correct = lambda problem: problem  # with the times that traffic shows; set by who hears of them

    @property
    def choice(self) -> Choice:
        """The plan that runs, or the last one that did. There is one from `begin` on."""
        if self._choice is None:
            raise InternalError("no epoch has begun yet")
        return self._choice

    async def begin(self, plan: Plan) -> Ring | None:
        """The first epoch; None when the starter is alone. Raises as `change` does."""
        self._choice = Choice(self._costs, plan)
        try:
            return await self._start(plan, self._peers(), self._on_progress)
        except MdiError as error:
            return await self.change(error)

    async def propose(self) -> Choice | None:
        """The best plan now, with nodes that came or came back; None when it is the one that runs. It disturbs nothing that runs.

        Raises as the planner does.
        """
        infos = await self._survey()
        await self._welcome(infos)
        now_s = self._now_s()
        choice = self._choose(infos, self._log.out(now_s), self._log.broken(now_s))
        same = self._plan is not None and _placed(choice.plan) == _placed(self._plan)
        return None if same else choice

    @property
    def costs(self) -> Problem:
        """What was measured without traffic, of all nodes that ever came."""
        return self._costs

    async def available(self) -> Problem:
        """That of the nodes that answer now and are not out, with the memory that they offer to the next epoch."""
        infos, now_s = await self._survey(), self._now_s()
        memory_bytes = {node_id: self._offers(info) for node_id, info in infos.items()}
        return among(self._costs, memory_bytes, self._log.out(now_s), self._log.broken(now_s))

    async def welcome(self) -> None:
        """Looks for nodes that came or came back, and measures those that nobody has measured yet, while an epoch runs.

        Its own nodes are left alone, whether they answer or not: the ring hears of a failure first, and their channels carry leases.
        """
        house, ring = self._setting.house, {stage.node_id for stage in self._workers}
        answering = {*await self._survey(), *ring}
        await look_again(house, [each.info.node_id for each in house.others if each.info.node_id not in answering])
        came = (await self._survey()).keys() - self._met - {node.node_id for node in self._costs.nodes}
        if came:
            self._costs = await self._measure()
            self._met |= came & {each.info.node_id for each in house.others}

    async def change(self, cause: Cause, *, progressed: bool = False) -> Ring | None:
        """Ends the epoch, plans with who is there, loads that and opens its ring: the core's next steps replay its sequences.

        `progressed`: a token came since the last change. Raises the error itself when it is ours or the user's or one too many, and
        what the planner raises when what is left cannot hold the model; no epoch runs then, and `change` may be tried again.
        """
        if progressed:
            self._log.progressed()
        sent, at_s = self._core.steps, self._now_s()
        await self._end()
        noticed: list[_Noticed] = []
        infos: dict[str, pb.NodeInfo] = {}
        try:
            while True:
                infos = await self._survey()
                verdict = None if isinstance(cause, Wish) else self._judge(cause, infos, sent)
                if verdict is not None:
                    noticed.append(_Noticed(self._named(verdict), str(cause), at_s))
                    await asyncio.sleep(verdict.pause_s)
                choice = _possible(cause, infos) or await self._next(infos)
                self._tell(self._sentence(verdict, cause, choice.plan))
                try:
                    ring = await self._start(choice.plan, self._peers(infos), _silent)
                except MdiError as error:
                    cause, sent, at_s = error, 0, self._now_s()
                    await self._end()
                    continue
                self._choice = choice
                self._remember(noticed)
                return ring
        except Exception:
            await self._free_all(infos)
            raise

    async def close(self) -> None:
        """Ends the epoch and frees all stages of the session."""
        await self._end()
        await self._free_all(self._holders)

    async def _free_all(self, answering: Collection[str]) -> None:
        holders, self._holders = self._holders, {}
        await free([peer for node_id, peer in holders.items() if node_id in answering], self._target.session)

    async def _end(self) -> None:
        """The running epoch's streams and leases; its stages stay where the next one replaces them."""
        await self._engine.run(self._core.end_epoch)
        running, self._open = self._open, AsyncExitStack()
        await running.aclose()

    async def _survey(self) -> dict[str, pb.NodeInfo]:
        """What every node says that answers, by id."""

        async def ask(peer: Peer) -> pb.NodeInfo | None:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    return await peer.info()
            except (MdiError, TimeoutError):
                return None

        peers = self._peers()
        answers = await asyncio.gather(*(ask(peer) for peer in peers.values()))
        return {node_id: info for node_id, info in zip(peers, answers, strict=True) if info is not None}

    def _judge(self, error: MdiError, infos: dict[str, pb.NodeInfo], sent: int) -> Verdict:
        ring = [stage.node_id for stage in self._workers]
        named = [node_id for node_id in ring if error.peer is not None and self._name(node_id) == error.peer]
        steps = {node_id: self._steps(info) for node_id, info in infos.items()}
        suspect = named[-1] if named else stalled(ring, sent, steps)
        gone = [node_id for node_id in ring if node_id not in infos]
        return self._log.judge(error, ring, gone, suspect, self._now_s())

    async def _next(self, infos: dict[str, pb.NodeInfo]) -> Choice:
        """The best plan of those that answer and are not out. When there is none, of all that answer, and of those that came back."""
        now_s = self._now_s()
        try:
            return self._choose(infos, self._log.out(now_s), self._log.broken(now_s))
        except MdiError:
            await self._welcome(infos)
        try:
            return self._choose(infos, (), ())
        except MdiError as error:
            for node in self._costs.nodes[1:]:
                if node.node_id not in infos:
                    error.add_note(f"{node.name} does not answer")
            raise

    def _choose(self, infos: dict[str, pb.NodeInfo], out: Collection[str], broken: Collection[Hop]) -> Choice:
        left = self.shown(among(self._costs, {node_id: self._offers(info) for node_id, info in infos.items()}, out, broken))
        return Choice(left, plan_of_those_left(self._costs, left, self._setting.options))

    async def _welcome(self, infos: dict[str, pb.NodeInfo]) -> None:
        """Looks for nodes that came or came back, adds what they say to `infos`, and measures those that nobody has measured yet."""
        house = self._setting.house
        await look_again(house, [each.info.node_id for each in house.others if each.info.node_id not in infos])
        infos |= await self._survey()
        known = {node.node_id for node in self._costs.nodes}
        if not known.issuperset(infos):
            self._costs = await self._measure()

    async def _start(self, plan: Plan, peers: dict[str, Peer], on_progress: OnProgress) -> Ring | None:
        """Loads a plan as the next epoch and opens its ring. When it fails, `_end` is to be called."""
        setting, workload = self._setting, self._setting.workload
        self._target = RingTarget(self._target.session, self._target.epoch + 1)
        wanted = {stage.node_id for stage in plan.stages[1:]}
        idle = [peer for node_id, peer in self._holders.items() if node_id not in wanted and node_id in peers]
        self._holders = {node_id: peers[node_id] for node_id in wanted}
        self._plan = plan  # a failure is judged by it from now on, whether it gets as far as a ring or not
        async with first_error(), asyncio.TaskGroup() as tasks:
            own = tasks.create_task(in_thread(self._part.load, plan.stages[0].blocks), name="load the starter's blocks")
            tasks.create_task(free(idle, self._target.session), name="free stages")
            loading = deploy(plan, self._target, peers, setting.packed, setting.packs, workload, setting.model, on_progress)
            self.deployment = await self._open.enter_async_context(loading)
        ring = None
        if workers := self.deployment.workers:
            addresses = [worker.peer.address for worker in workers]
            opening = open_ring(setting.house.dialler, self._target, addresses, step_timeout_s(plan))
            ring = await self._open.enter_async_context(opening)
        await self._engine.run(self._begin, own.result(), plan)
        return ring

    def _begin(self, local: Engine | None, plan: Plan) -> None:
        workload, config = self._setting.workload, self._setting.packed.config
        limits = FrameLimits(config.d_model, workload.chunk_tokens, workload.n_slots, workload.ctx, "f32")
        alone = len(plan.stages) == 1
        rows_per_step = Forecast(self._costs, plan.node_ids, plan.counts).rows_per_step
        in_flight = steps_in_flight(len(plan.stages))
        self._core.begin_epoch(self._target.epoch, local, None if alone else limits, in_flight, rows_per_step)

    def _peers(self, among: Iterable[str] | None = None) -> dict[str, Peer]:
        peers = {each.info.node_id: each.peer for each in self._setting.house.others}
        return peers if among is None else {node_id: peers[node_id] for node_id in among if node_id in peers}

    def _offers(self, info: pb.NodeInfo) -> int:
        """What a node offers to the next epoch: what its stage of this session takes is free then."""
        return int(info.memory_offered_bytes) + sum(each.bytes for each in self._mine(info))

    def _steps(self, info: pb.NodeInfo) -> int:
        return sum(each.steps for each in self._mine(info) if each.epoch == self._target.epoch)

    def _mine(self, info: pb.NodeInfo) -> list[pb.StageInfo]:
        return [each for each in info.stages if each.session == self._target.session]

    @property
    def _workers(self) -> tuple[Stage, ...]:
        return () if self._plan is None else self._plan.stages[1:]

    def _name(self, node_id: str) -> str:
        return next((stage.name for stage in self._workers if stage.node_id == node_id), node_id)

    def _named(self, verdict: Verdict) -> str | None:
        names = [self._name(node_id) for node_id in verdict.culprits]
        return ", ".join(names) if names and not verdict.second_chance else None

    def _sentence(self, verdict: Verdict | None, cause: Cause, plan: Plan) -> str:
        left = [stage.name for stage in plan.stages]
        if verdict is None or isinstance(cause, Wish):
            reason = cause.reason if isinstance(cause, Wish) else str(cause)
            return f"{reason}; {going_on(left)}"
        return sentence([self._name(node_id) for node_id in verdict.culprits], verdict, cause, left)

    def _remember(self, noticed: list[_Noticed]) -> None:
        now_s = self._now_s()
        self.recoveries += [Recovery(each.node, each.reason, now_s - each.at_s) for each in noticed]
        del self.recoveries[:-MAX_RECOVERIES]

    def _tell(self, text: str) -> None:
        self._on_progress(Progress("recovery", text, 0, 1))
        self._on_progress(Progress("recovery", text, 1, 1))


def _possible(cause: Cause, infos: Collection[str]) -> Choice | None:
    """The plan that is wished for, if its nodes still answer."""
    choice = cause.choice if isinstance(cause, Wish) else None
    return choice if choice is not None and all(stage.node_id in infos for stage in choice.plan.stages[1:]) else None


def _placed(plan: Plan) -> list[tuple[str, BlockRange]]:
    return [(stage.node_id, stage.blocks) for stage in plan.stages]


def step_timeout_s(plan: Plan) -> float:
    times = plan.prediction
    return STEP_TIMEOUT_FLOOR_S + STEP_TIMEOUT_FACTOR * (sum(times.stage_prefill_s) + sum(times.hop_prefill_s))


def _silent(progress: Progress) -> None:
    """The user hears one line of a change, and that is its sentence."""
