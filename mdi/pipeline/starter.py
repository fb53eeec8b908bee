"""The starter: finds the nodes, plans, deploys, and answers."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import psutil

from mdi.cluster.home import Home
from mdi.engine.constraint import Guides
from mdi.engine.observe import BlockObserver
from mdi.engine.thread import EngineThread
from mdi.errors import InternalError, MdiError
from mdi.model.kv import KvType
from mdi.model.packed import PackedModel, prepare
from mdi.model.source import Model, resolve
from mdi.node.daemon import SWITCH_INTERVAL_S
from mdi.pipeline.adaptive import Adaptive
from mdi.pipeline.answer import answer
from mdi.pipeline.api import Answer, OnProgress, Piece, Progress, Request, StarterOptions
from mdi.pipeline.choice import chosen_plan, permitted_here
from mdi.pipeline.core import StarterCore
from mdi.pipeline.deploy import Worker
from mdi.pipeline.drive import Drive, Inbox, new_inbox
from mdi.pipeline.epochs import Epochs, Setting, Wish
from mdi.pipeline.problem import Workload, ctx_notices, draw_problem, starter_backend, starter_threads
from mdi.pipeline.recovery import Recovery
from mdi.pipeline.scheduler import Scheduler
from mdi.pipeline.survey import House, open_house
from mdi.pipeline.timed import TimedPart
from mdi.plan.adapt import Change
from mdi.plan.costs import Problem
from mdi.plan.plan import Plan, Stage
from mdi.plan.wishes import permitted
from mdi.profile.device import DeviceInfo
from mdi.profile.memory import keep_large_blocks_apart
from mdi.profile.temperature import temperature_c
from mdi.wire import mdi_pb2 as pb


@dataclass(frozen=True, slots=True)
class Planned:
    """`mdi plan`'s answer. `problems`: weights that are rounded again, a context that is cut, nodes that were left out."""

    model_name: str
    problem: Problem
    plan: Plan
    problems: tuple[str, ...]


class Starter:
    """A model that is up. One `generate` per KV slot at a time."""

    def __init__(
        self,
        model: Model,
        workload: Workload,
        planned: Planned,
        core: StarterCore,
        drive: Drive,
        epochs: Epochs,
        adaptive: Adaptive,
    ) -> None:
        self.model = model
        self.problems = planned.problems
        self.ctx = workload.ctx
        self.n_slots = workload.n_slots
        self._core = core
        self._drive = drive
        self._epochs = epochs
        self._adaptive = adaptive
        self._inboxes: set[Inbox] = set()  # of the answers that nobody stopped
        self._guides = Guides(model.tokenizer, model.config.vocab_size)

    @property
    def plan(self) -> Plan:
        """The one that runs now: nodes that fail change it, and so does `replan`."""
        return self._epochs.choice.plan

    @property
    def problem(self) -> Problem:
        """What `plan` was chosen for."""
        return self._epochs.choice.problem

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """Failures so far that cost no token, the oldest first."""
        return tuple(self._epochs.recoveries)

    @property
    def changes(self) -> tuple[Change, ...]:
        """Changes of the plan so far that followed from the speed of real traffic, or from nodes that joined; the oldest first."""
        return tuple(self._adaptive.changes)

    async def replan(self, reason: str) -> bool:
        """Changes to the best plan now, with nodes that came or came back; running answers go on under it. False: it is the best.

        `reason` is told to the user. Raises ClusterError when no plan is possible.
        """
        choice = await self._epochs.propose()
        if choice is None:
            return False
        await self._drive.change(Wish(reason, choice))
        return True

    async def generate(self, request: Request) -> AsyncGenerator[Piece | Answer, None]:
        """Pieces of text as they come, then one Answer.

        Nodes that fail are recovered from. Raises UserError and PromptTooLong before anything runs, ClusterError when those left cannot
        hold the model, or fail too often.
        """
        request.params.check_vocabulary(self.model.config.vocab_size)
        inbox = new_inbox(self.ctx)
        self._inboxes.add(inbox)
        try:
            async with (
                self._adaptive.answering(),
                aclosing(answer(self._drive, self.model.tokenizer, self._guides, request, inbox)) as events,
            ):
                async for event in events:
                    yield event
        finally:
            self._inboxes.discard(inbox)

    def cancel(self) -> None:
        """Ends every running answer; each still gives its Answer, and its KV stays for the next turn."""
        while self._inboxes:
            self._inboxes.pop().put_nowait(None)

    async def stage_steps(self) -> dict[str, int]:
        """Steps that each node of the plan computed, by node name."""
        steps = {self.plan.stages[0].name: self._core.local_steps}
        deployment = self._epochs.deployment
        for worker in deployment.workers:
            info = await worker.peer.info()
            session = deployment.target.session
            steps[worker.stage.name] = sum(stage.steps for stage in info.stages if stage.session == session)
        return steps

    def stage_statuses(self) -> list[tuple[Stage, pb.NodeStatus]]:
        """What each node of the plan last said of itself and its stage; those that said nothing yet are left out."""
        own = pb.NodeStatus(steps=self._core.local_steps, busy_s=self._core.busy_s, temperature_c=temperature_c() or 0.0)
        own.memory_available_bytes = psutil.virtual_memory().available
        told = [
            (worker.stage, status) for worker in self._epochs.deployment.workers if (status := worker.last_status.get("status"))
        ]
        return [(self.plan.stages[0], own), *told]

    @property
    def failure(self) -> BaseException | None:
        """Why no answer can be computed any more; known at once, where `problems_now` asks the nodes."""
        return self._drive.failure

    async def problems_now(self) -> dict[str, str | None]:
        """By node of the plan what keeps it from answering, None where nothing does: asks every worker whether it holds its stage."""
        failure = self._drive.failure
        checks = await asyncio.gather(*(self._problem_of(worker) for worker in self._epochs.deployment.workers))
        return {self.plan.stages[0].name: None if failure is None else str(failure)} | {
            worker.stage.name: problem for worker, problem in zip(self._epochs.deployment.workers, checks, strict=True)
        }

    async def _problem_of(self, worker: Worker) -> str | None:
        try:
            info = await worker.peer.info()
        except MdiError as error:
            return str(error)
        session = self._epochs.deployment.target.session
        return None if any(stage.session == session for stage in info.stages) else f"{worker.stage.name} lost its stage"


@asynccontextmanager
async def open_starter(options: StarterOptions, home: Home, on_progress: OnProgress) -> AsyncIterator[Starter]:
    """Brings a model up on this device and the others. Raises UserError for what was asked wrong, ClusterError for what failed."""
    model = Model(resolve(options.model))
    workload = Workload.of(model, options)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_large_blocks_apart()
    async with AsyncExitStack() as stack:
        engine = stack.enter_context(EngineThread())
        packing = asyncio.create_task(_pack(model, options, workload, home, on_progress), name="prepare the packs")
        stack.push_async_callback(_settled, packing)
        house = await stack.enter_async_context(_house(options, home, on_progress))
        packed = await packing  # first: measuring beside the conversion would measure both
        planned = await _plan(house, model, workload, options, engine, on_progress)
        part = await asyncio.to_thread(
            TimedPart, packed, home.packs_path, workload, starter_backend(house, options), starter_threads(house, options)
        )
        scheduler = Scheduler(
            n_slots=workload.n_slots,
            ctx=workload.ctx,
            chunk_tokens=workload.chunk_tokens,
            may_grow=workload.ctx < model.config.max_positions,
        )
        core = StarterCore(scheduler, part.embedding, None, part.head)
        setting = Setting(house, options, workload, packed, home.packs_path, model.source.name)

        async def measure() -> Problem:
            known = replace(options, refresh_profiles=False)
            problem = permitted_here(await draw_problem(house, workload, known, engine, _silent), options.wishes)
            # What this process took meanwhile is the model's own, and not missing to it.
            own = replace(problem.nodes[0], memory_bytes=planned.problem.nodes[0].memory_bytes)
            return replace(problem, nodes=(own, *problem.nodes[1:]))

        epochs = Epochs(setting, planned.problem, part, core, engine, measure, on_progress)
        stack.callback(gc.collect)  # calls that ended hold each other, and so their connections, in cycles
        stack.push_async_callback(epochs.close)
        first = await epochs.begin(planned.plan)
        adaptive = Adaptive(epochs, options, part, workload)
        drive = Drive(core, scheduler, engine, adaptive.timed(first), adaptive.change)
        driving = asyncio.create_task(drive.run(), name="drive")
        stack.push_async_callback(_settled, driving)
        adapting = asyncio.create_task(adaptive.run(drive), name="adapt")
        stack.push_async_callback(_settled, adapting)
        yield Starter(model, workload, planned, core, drive, epochs, adaptive)


async def draw_plan(options: StarterOptions, home: Home, on_progress: OnProgress) -> Planned:
    """What `open_starter` would do, without sending or loading anything."""
    model = Model(resolve(options.model))
    workload = Workload.of(model, options)
    with EngineThread() as engine:
        async with _house(options, home, on_progress) as house:
            return await _plan(house, model, workload, options, engine, on_progress)


@asynccontextmanager
async def _house(options: StarterOptions, home: Home, on_progress: OnProgress) -> AsyncIterator[House]:
    on_progress(Progress("discover", "looking for nodes", 0, 1))
    async with open_house(home, options.peers, discovery=options.discovery, wait_s=options.wait_s) as house:
        on_progress(Progress("discover", "looking for nodes", 1, 1))
        yield house


async def _pack(model: Model, options: StarterOptions, workload: Workload, home: Home, on_progress: OnProgress) -> PackedModel:
    """Converts in a thread. When cancelled, the thread ends at the next part: Ctrl-C must not wait for a 7B model."""
    loop = asyncio.get_running_loop()
    stopped = threading.Event()
    threads = options.threads or DeviceInfo.of_this_device().usable_cores
    observer = BlockObserver(model.config, threads)

    def on_part(done: int, total: int) -> None:
        if stopped.is_set():
            raise InternalError("the conversion was cancelled")
        loop.call_soon_threadsafe(on_progress, Progress("convert", "converting the weights", done, total))

    try:
        return await asyncio.to_thread(
            lambda: prepare(
                model.weights(options.quant),
                workload.fmt,
                home.packs_path,
                on_part,
                observer,
                weighed=options.quant.weighed,
                kv_scales=workload.kv_type is KvType.INT8,
            )
        )
    finally:
        stopped.set()


async def _plan(
    house: House, model: Model, workload: Workload, options: StarterOptions, engine: EngineThread, on_progress: OnProgress
) -> Planned:
    problem = await draw_problem(house, workload, options, engine, on_progress)
    left_out = [f"{row.name} ({row.address}) is left out: {row.problem}" for row in house.problems]
    try:
        problem = permitted(problem, options.wishes)
        plan = chosen_plan(problem, options)
    except MdiError as error:
        for sentence in left_out:
            error.add_note(sentence)
        raise
    notices = (*model.notices(options.quant), *ctx_notices(options.ctx, model.config))
    return Planned(model.source.name, problem, plan, (*notices, *left_out, *house.notices))


def _silent(progress: Progress) -> None:
    """Nobody watches."""


async def _settled(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
