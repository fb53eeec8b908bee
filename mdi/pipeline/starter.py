"""The starter: finds the nodes, plans, deploys, and answers."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from mdi.cluster.home import Home
from mdi.engine.backend import Backend
from mdi.engine.constraint import Guides
from mdi.engine.observe import BlockObserver
from mdi.engine.protocol import StageShape
from mdi.engine.thread import EngineThread
from mdi.errors import InternalError, MdiError, UserError
from mdi.model.kv import KvType
from mdi.model.packed import Embedding, PackedModel, open_packs, prepare
from mdi.model.packs import open_pack
from mdi.model.source import Model, resolve
from mdi.node.daemon import SWITCH_INTERVAL_S
from mdi.pipeline.answer import answer
from mdi.pipeline.api import Answer, OnProgress, Piece, Progress, Request, StarterOptions
from mdi.pipeline.choice import best_plan
from mdi.pipeline.core import StarterCore
from mdi.pipeline.deploy import Deployment, deploy
from mdi.pipeline.drive import Drive, Inbox, new_inbox
from mdi.pipeline.problem import Workload, ctx_notices, draw_problem, starter_backend, starter_threads
from mdi.pipeline.ring import open_ring
from mdi.pipeline.scheduler import Scheduler
from mdi.pipeline.survey import House, open_house
from mdi.plan.costs import Problem
from mdi.plan.forecast import Forecast, steps_in_flight
from mdi.plan.plan import Plan
from mdi.plan.solve import manual
from mdi.plan.wishes import permitted
from mdi.profile.device import DeviceInfo
from mdi.profile.memory import keep_large_blocks_apart
from mdi.wire.frame import FrameLimits

STEP_TIMEOUT_FLOOR_S = 10.0
STEP_TIMEOUT_FACTOR = (
    30.0  # of the predicted time of a whole prefill step: a device that throttles to a tenth is slow, not dead
)


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
        self, model: Model, workload: Workload, planned: Planned, core: StarterCore, drive: Drive, deployment: Deployment
    ) -> None:
        self.model = model
        self.plan = planned.plan
        self.problem = planned.problem
        self.problems = planned.problems
        self.ctx = workload.ctx
        self._core = core
        self._drive = drive
        self._deployment = deployment
        self._inboxes: set[Inbox] = set()  # of the answers that nobody stopped
        self._guides = Guides(model.tokenizer, model.config.vocab_size)

    async def generate(self, request: Request) -> AsyncGenerator[Piece | Answer, None]:
        """Pieces of text as they come, then one Answer.

        Raises UserError and PromptTooLong before anything runs, ClusterError when a node fails.
        """
        request.params.check_vocabulary(self.model.config.vocab_size)
        inbox = new_inbox(self.ctx)
        self._inboxes.add(inbox)
        try:
            async with aclosing(answer(self._drive, self.model.tokenizer, self._guides, request, inbox)) as events:
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
        for worker in self._deployment.workers:
            info = await worker.peer.info()
            session = self._deployment.target.session
            steps[worker.stage.name] = sum(stage.steps for stage in info.stages if stage.session == session)
        return steps


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
        peers = {neighbour.info.node_id: neighbour.peer for neighbour in house.others}
        deployment = await stack.enter_async_context(
            deploy(planned.plan, peers, packed, home.packs_path, workload, model.source.name, on_progress)
        )
        threads = starter_threads(house, options)
        backend = starter_backend(house, options)
        core, scheduler = await asyncio.to_thread(_core, packed, home, planned.plan, workload, deployment, backend, threads)
        scheduler.spread(Forecast(planned.problem, planned.plan.node_ids, planned.plan.counts).rows_per_step)
        ring = None
        if deployment.workers:
            addresses = [worker.peer.address for worker in deployment.workers]
            ring = await stack.enter_async_context(
                open_ring(house.dialler, deployment.target, addresses, _step_timeout_s(planned.plan))
            )
        drive = Drive(core, scheduler, engine, ring)
        driving = asyncio.create_task(drive.run(), name="drive")
        stack.push_async_callback(_settled, driving)
        yield Starter(model, workload, planned, core, drive, deployment)


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
        plan = best_plan(problem, options) if options.split is None else _by_hand(problem, options.split)
    except MdiError as error:
        for sentence in left_out:
            error.add_note(sentence)
        raise
    notices = (*model.notices(options.quant), *ctx_notices(options.ctx, model.config))
    return Planned(model.source.name, problem, plan, (*notices, *left_out, *house.notices))


def _by_hand(problem: Problem, split: tuple[int, ...]) -> Plan:
    """The starter first, then the others in the order of their names; who gets 0 blocks takes no part."""
    if len(split) > len(problem.nodes):
        raise UserError(
            f"--split names {len(split)} nodes, and {len(problem.nodes)} are here",
            hint="see `mdi nodes`, and start the others with `mdi node start`",
        )
    if sum(split) != (n_blocks := problem.model.n_blocks):
        typed = ",".join(str(count) for count in split)
        raise UserError(f"--split {typed} adds up to {sum(split)}, not {n_blocks}", hint=f"the model has {n_blocks} blocks")
    others = sorted(problem.nodes[1:], key=lambda node: (node.name, node.node_id))
    chosen = [problem.nodes[0], *(node for node, count in zip(others, split[1:], strict=False) if count)]
    return manual(problem, [node.node_id for node in chosen], [split[0], *(count for count in split[1:] if count)])


def _core(
    packed: PackedModel, home: Home, plan: Plan, workload: Workload, deployment: Deployment, backend: Backend, threads: int
) -> tuple[StarterCore, Scheduler]:
    """Loads the starter's own part."""
    directory, config, own = home.packs_path, packed.config, plan.stages[0].blocks
    shape = StageShape(workload.n_slots, workload.ctx, threads, backend.kv_type(workload.kv_type))
    packs = open_packs(packed, directory, own.start, own.stop)
    # The head first: while it loads, it lies in memory twice, and a large one would make the peak if the blocks were there already.
    head = backend.make_head(config, open_pack(directory / packed.head.filename), threads)
    local = backend.make_engine(config, packs, shape, own.start) if len(own) else None
    embedding = Embedding(open_pack(directory / packed.embedding.filename), config.embedding_scale)
    scheduler = Scheduler(
        n_slots=workload.n_slots,
        ctx=workload.ctx,
        chunk_tokens=workload.chunk_tokens,
        may_grow=workload.ctx < config.max_positions,
    )
    if not deployment.workers:
        return StarterCore(scheduler, embedding, local, head), scheduler
    limits = FrameLimits(config.d_model, workload.chunk_tokens, workload.n_slots, workload.ctx, "f32")
    core = StarterCore(
        scheduler,
        embedding,
        local,
        head,
        epoch=deployment.target.epoch,
        limits=limits,
        max_in_flight=steps_in_flight(len(plan.stages)),
    )
    return core, scheduler


def _step_timeout_s(plan: Plan) -> float:
    times = plan.prediction
    return STEP_TIMEOUT_FLOOR_S + STEP_TIMEOUT_FACTOR * (sum(times.stage_prefill_s) + sum(times.hop_prefill_s))


async def _settled(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
