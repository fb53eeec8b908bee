"""From a plan to loaded stages: every worker gets the packs it misses and loads its blocks, all of them at the same time.

A stage takes the place of the one that its node held for the session's older epoch. Who is no longer needed is told by `free`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mdi.engine.protocol import StageShape
from mdi.errors import MdiError
from mdi.model.packed import PackedModel
from mdi.node.stage import StageSpec
from mdi.pipeline.api import OnProgress, Progress
from mdi.pipeline.peer import Peer
from mdi.pipeline.problem import Workload
from mdi.plan.plan import Plan, Stage
from mdi.wire import mdi_pb2 as pb
from mdi.wire.ring import RingTarget

UPLOADS_AT_ONCE = 2  # per worker: the next pack travels while the last one is hashed and written
UNLOAD_TIMEOUT_S = 3.0  # a worker that does not answer frees the stage itself when the lease ends


@dataclass(frozen=True, slots=True)
class Worker:
    """A stage on another node, and what that node last said of it."""

    stage: Stage
    peer: Peer
    last_status: dict[str, pb.NodeStatus] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        status = self.last_status.get("status")
        return status.steps if status else 0


@dataclass(frozen=True, slots=True)
class Deployment:
    target: RingTarget
    workers: tuple[Worker, ...]


@asynccontextmanager
async def deploy(
    plan: Plan,
    target: RingTarget,
    peers: dict[str, Peer],
    packed: PackedModel,
    packs: Path,
    workload: Workload,
    model: str,
    on_progress: OnProgress,
) -> AsyncIterator[Deployment]:
    """The plan's workers, loaded, and leased while the context is open. Their stages stay until `free`, or the leases' end.

    Raises what the first failing worker failed with, once no other is loading any more: so each can be asked again at once.
    """
    deployment = Deployment(target, tuple(Worker(stage, peers[stage.node_id]) for stage in plan.stages[1:]))
    leases: list[asyncio.Task[None]] = []

    def hold(worker: Worker) -> None:
        leases.append(asyncio.create_task(_watch(worker, deployment.target), name="lease"))

    await _upload_all(deployment, packed, packs, on_progress)
    try:
        await _load_all(deployment, packed, workload, model, hold, on_progress)
        yield deployment
    finally:
        for lease in leases:
            lease.cancel()
        await asyncio.gather(*leases, return_exceptions=True)


async def free(peers: Iterable[Peer], session: str) -> None:
    """Ends the session on these nodes, as far as they answer: their own leases end it on the others."""
    await asyncio.gather(*(_unload(peer, session) for peer in peers))


async def _upload_all(deployment: Deployment, packed: PackedModel, packs: Path, on_progress: OnProgress) -> None:
    wanted = [(worker, packed.blocks[worker.stage.blocks.start : worker.stage.blocks.stop]) for worker in deployment.workers]
    missing = await asyncio.gather(*(worker.peer.missing(refs) for worker, refs in wanted))
    total = sum(ref.n_bytes for refs in missing for ref in refs)
    if not total:
        return
    sent = 0

    def on_bytes(n_bytes: int) -> None:
        nonlocal sent
        sent += n_bytes
        on_progress(Progress("upload", "sending weights", sent, total))

    on_progress(Progress("upload", "sending weights", 0, total))
    async with first_error(), asyncio.TaskGroup() as tasks:
        for (worker, _), refs in zip(wanted, missing, strict=True):
            lanes = asyncio.Semaphore(UPLOADS_AT_ONCE)
            for ref in refs:

                async def upload(peer: Peer = worker.peer, ref=ref, lanes=lanes) -> None:  # type: ignore[no-untyped-def]
                    async with lanes:
                        await peer.upload(ref, packs / ref.filename, on_bytes)

                tasks.create_task(upload())


async def _load_all(
    deployment: Deployment,
    packed: PackedModel,
    workload: Workload,
    model: str,
    hold: Callable[[Worker], None],
    on_progress: OnProgress,
) -> None:
    """`hold` is told of each stage when it is loaded: its lease must not end while another node still reads its card."""
    workers = deployment.workers
    done = 0
    on_progress(Progress("load", "loading", 0, len(workers)))

    async def load(index: int) -> None:
        nonlocal done
        worker, blocks = workers[index], workers[index].stage.blocks
        await worker.peer.load(
            StageSpec(
                target=deployment.target,
                starter_id="",
                model=model,
                config=packed.config,
                fmt=packed.fmt,
                blocks=blocks,
                packs=packed.blocks[blocks.start : blocks.stop],
                shape=StageShape(workload.n_slots, workload.ctx, 1, workload.kv_type),
                max_tokens=workload.chunk_tokens,
                next=workers[index + 1].peer.address if index + 1 < len(workers) else None,
            )
        )
        hold(worker)
        done += 1
        on_progress(Progress("load", "loading", done, len(workers)))

    results = await asyncio.gather(*(load(index) for index in range(len(workers))), return_exceptions=True)
    if failures := [result for result in results if isinstance(result, BaseException)]:
        raise failures[0]


async def _watch(worker: Worker, target: RingTarget) -> None:
    """Holds the lease. A node that fails ends its streams of the ring too, which is where the failure is told."""
    with contextlib.suppress(MdiError):
        await worker.peer.watch(target.session, lambda status: worker.last_status.update(status=status))


async def _unload(peer: Peer, session: str) -> None:
    with contextlib.suppress(MdiError, TimeoutError):
        async with asyncio.timeout(UNLOAD_TIMEOUT_S):
            await peer.unload(session)


@asynccontextmanager
async def first_error() -> AsyncIterator[None]:
    """Lets the first failure of a task group out as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
