"""The plan follows the speeds of real traffic, and uses nodes that join: heard all the time, decided and done between answers.

What decides is pure (`mdi.plan.adapt`, `live.py`); here is the clock, and who is asked when.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from mdi.errors import MdiError, PeerError
from mdi.node.control import STATUS_INTERVAL_S
from mdi.node.messages import reported_steps
from mdi.node.meter import Meter, Totals, between
from mdi.pipeline.api import StarterOptions
from mdi.pipeline.choice import is_here
from mdi.pipeline.drive import Drive
from mdi.pipeline.epochs import Cause, Choice, Epochs, Wish
from mdi.pipeline.live import LiveTimes
from mdi.pipeline.problem import Workload
from mdi.pipeline.ring import Ring
from mdi.pipeline.timed import TimedPart, TimedRing
from mdi.plan.adapt import Adapter, Change, Goal, better
from mdi.plan.costs import Problem
from mdi.plan.live import Factors, scaled
from mdi.plan.plan import Plan
from mdi.wire import mdi_pb2 as pb

TICK_S = STATUS_INTERVAL_S / 2  # each status of a worker is seen, at the latest so much later
# Between looks for nodes that came: a look listens for 1.5 s, and a person who switches a device on waits longer until it is up.
MEET_INTERVAL_S = 20.0
MAX_CHANGES = 64  # remembered, the latest: one a minute is an hour of them

_log = logging.getLogger(__name__)


class Adaptive:
    """All methods belong to the event loop. `run` is a task of the starter; without it nothing is heard and nothing changes."""

    def __init__(
        self,
        epochs: Epochs,
        options: StarterOptions,
        part: TimedPart,
        workload: Workload,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`epochs` must have begun."""
        self._epochs = epochs
        self._options = options
        self._part = part
        self._row_bytes = 4 * workload.config.d_model
        self._now_s = now_s
        self._choice = epochs.choice
        self._base = epochs.costs  # of the nodes that answered when they were last asked
        self._live = LiveTimes(epochs.costs, self._choice.plan)
        self._adapter = Adapter(epochs.costs)
        epochs.shown = lambda problem: scaled(problem, self._live.factors(now_s()))  # a failure moves no blocks to who is slow
        self._ring: TimedRing | None = None
        self._heard: dict[str, pb.NodeStatus] = {}
        self._counted: tuple[Meter, Totals, Totals] = part.blocks, {}, {}
        self._own_at_s = now_s()
        self._looking = asyncio.Lock()
        self._is_new = False  # something may have changed since the last look
        self._looked_at: tuple[Problem, Plan, Factors] | None = None
        self._n_answers = 0
        self._busy = asyncio.Event()
        self._drive: Drive | None = None
        self.changes: deque[Change] = deque(maxlen=MAX_CHANGES)

    def timed(self, ring: Ring | None) -> Ring | None:
        self._ring = None if ring is None else TimedRing(ring, self._row_bytes)
        return self._ring

    async def change(self, cause: Cause, *, progressed: bool = False) -> Ring | None:
        """As `Epochs.change`."""
        return self.timed(await self._epochs.change(cause, progressed=progressed))

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """While an answer runs. The first of several waits until the plan is the right one for it."""
        if not self._n_answers:
            await self._look()
        self._n_answers += 1
        self._busy.set()
        try:
            yield
        finally:
            self._n_answers -= 1
            if not self._n_answers:
                self._busy.clear()

    async def run(self, drive: Drive) -> None:
        """Until cancelled. An error of our own ends it: the model goes on with the plan that it has."""
        self._drive = drive
        try:
            await self._follow()
        except Exception:
            _log.exception("the plan does not follow traffic any more")

    async def _follow(self) -> None:
        met_s = self._now_s()
        while True:
            await asyncio.sleep(TICK_S)
            self._hear()
            if self._n_answers:
                continue
            await self._look()
            if self._now_s() - met_s >= MEET_INTERVAL_S:
                await self._meet()
                met_s = self._now_s()

    def _hear(self) -> None:
        """What all have told since the last tick."""
        now_s, choice = self._now_s(), self._epochs.choice
        if choice is not self._choice:
            self._choice = choice
            self._base = self._epochs.costs
            self._live.replanned(self._epochs.costs, choice.plan, now_s)
            self._heard.clear()
        for worker in self._epochs.deployment.workers:
            node_id, status = worker.stage.node_id, worker.last_status.get("status")
            if status is not None and self._heard.get(node_id) is not status:
                self._heard[node_id] = status
                self._hear_worker(node_id, status)
        if now_s - self._own_at_s >= STATUS_INTERVAL_S:  # as the workers do
            self._own_at_s = now_s
            self._hear_own()

    def _hear_worker(self, node_id: str, status: pb.NodeStatus) -> None:
        try:
            steps = reported_steps(status)
        except PeerError as error:
            _log.info("what node %s tells of its steps is ignored: %s", node_id[:12], error)
            return
        self._live.report(node_id, steps)
        self._is_new = self._is_new or bool(steps)

    def _hear_own(self) -> None:
        blocks, before, before_logits = self._counted
        if blocks is not self._part.blocks:
            blocks, before = self._part.blocks, {}
        counted, logits = blocks.totals, self._part.logits.totals
        self._counted = blocks, counted, logits
        self._live.report(self._choice.plan.node_ids[0], between(before, counted))
        self._live.report_head(between(before_logits, logits))
        if self._ring is not None and (trip_s := self._ring.take_trip_s()) is not None:
            self._live.report_trip(trip_s)
        self._is_new = self._is_new or logits != before_logits

    async def _look(self) -> None:
        """Changes the plan if it should be another one. What cannot be decided or done now is left as it is."""
        async with self._looking:
            if self._drive is None or not self._is_new or self._adapter.rests(self._now_s()):
                return
            self._is_new = False
            try:
                change = await self._decide()
            except MdiError as error:  # no plan is possible for who is left, which is told when the present one fails
                _log.info("no other plan was looked for: %s", error)
                return
            if change is None:
                return
            try:
                await self._drive.change(Wish(change.sentence, Choice(change.problem, change.plan)))
            except MdiError as error:
                _log.warning("the plan did not change: %s", error)
                return
            self.changes.append(change)

    async def _decide(self) -> Change | None:
        """Most times without asking anybody: the nodes are asked how they are before a plan is taken, not before it is looked for."""
        plan, now_s = self._epochs.choice.plan, self._now_s()
        factors = self._live.factors(now_s)
        if not _holds(self._base, plan.node_ids):
            self._base = self._epochs.costs
        looked_at, self._looked_at = self._looked_at, (self._base, plan, factors)
        if looked_at is not None and looked_at[0] is self._base and looked_at[1:] == (plan, factors):
            return None
        if await asyncio.to_thread(better, scaled(self._base, factors), plan, goal_of(self._base, self._options)) is None:
            return None
        base = self._base = await self._epochs.available()
        if not _holds(base, plan.node_ids):
            return None  # a node is gone, which is another matter
        return await asyncio.to_thread(self._adapter.consider, now_s, base, plan, factors, goal_of(base, self._options))

    async def _meet(self) -> None:
        """Looks for nodes that joined, and measures them; ends early when an answer begins, and then goes on at the next time."""

        async def meet() -> None:
            with suppress(MdiError):
                await self._epochs.welcome()
            self._base, self._is_new = await self._epochs.available(), True

        meeting = asyncio.create_task(meet(), name="meet nodes")
        busy = asyncio.create_task(self._busy.wait(), name="an answer begins")
        try:
            await asyncio.wait((meeting, busy), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (meeting, busy):
                task.cancel()
            failure, _ = await asyncio.gather(meeting, busy, return_exceptions=True)
        if isinstance(failure, Exception):
            raise failure


def goal_of(problem: Problem, options: StarterOptions) -> Goal:
    """What plans for these nodes are to be: wishes that name others, or count on more than there are, do not bind."""
    able = sum(problem.block_limit(index) > 0 for index in range(len(problem.nodes)))
    pins = tuple(pin for pin in options.wishes.pins if is_here(problem, pin.node))
    return Goal(options.objective, max(1, min(options.min_nodes, able)), options.mixed_share, pins)


def _holds(problem: Problem, node_ids: tuple[str, ...]) -> bool:
    return {node.node_id for node in problem.nodes} >= set(node_ids)
