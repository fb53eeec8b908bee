"""The data plane on a node: frames come in by Flow, pass the stage, and leave to the next node or wait for the starter's Collect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from mdi.engine.thread import EngineThread
from mdi.errors import LinkError, MdiError
from mdi.node.callers import caller_id
from mdi.node.dial import Dialler, NodeAddress
from mdi.node.results import Sink
from mdi.node.stages import Held, Stages
from mdi.wire.ring import Flow, target_of
from mdi.wire.status import abort, from_rpc_error

# A next node or a starter that takes no frame for so long is stuck. The starter's own deadline on a step is shorter.
HAND_OVER_TIMEOUT_S = 60.0


class RingServicer:
    """Answers Flow and Collect (see `mdi.wire.ring.handlers`)."""

    def __init__(self, stages: Stages, engine: EngineThread, dialler: Dialler) -> None:
        self._stages = stages
        self._engine = engine
        self._dialler = dialler

    async def on_flow(self, frames: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        """Runs each frame through the stage, in the order of arrival, until the sender ends the stream or the stage is freed."""
        failure: MdiError | None = None
        try:
            caller_id(context)
            held = self._stages.get(target_of(context))
            async with asyncio.TaskGroup() as tasks:
                freed = tasks.create_task(held.wait_ended(), name="wait for the end of the stage")
                if (next_node := held.stage.spec.next) is None:
                    await self._pump(frames, held, held.results.put)
                else:
                    await self._forward(frames, held, next_node)
                freed.cancel()
        except* MdiError as errors:
            failure = _first(errors)
        if failure is not None:
            await abort(context, failure)

    async def on_collect(self, _: bytes, context: grpc.aio.ServicerContext) -> None:
        """Gives the starter the last stage's results as they come."""
        try:
            results = self._stages.results(target_of(context), caller_id(context))
        except MdiError as error:
            await abort(context, error)
        await results.collect(context.write)

    async def _pump(self, frames: AsyncIterator[bytes], held: Held, sink: Sink) -> None:
        async for data in frames:
            run = self._engine.run_brief if held.stage.is_brief(data) else self._engine.run
            result = await run(held.stage.compute, data)
            try:
                async with asyncio.timeout(HAND_OVER_TIMEOUT_S):
                    await sink(result)
            except TimeoutError:
                raise LinkError(f"nobody took a frame for {HAND_OVER_TIMEOUT_S:g} s") from None

    async def _forward(self, frames: AsyncIterator[bytes], held: Held, next_node: NodeAddress) -> None:
        """Passes results on, and fails as soon as the next node does: between frames nobody else would notice."""
        async with self._dialler.open(next_node) as channel:
            outgoing = Flow(channel, held.stage.spec.target, next_node.name)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_watch(outgoing, next_node.name), name=f"watch {next_node.name}")
                    await self._pump(frames, held, outgoing.send)
                    await outgoing.close()
            finally:
                outgoing.cancel()


async def _watch(outgoing: Flow, name: str) -> None:
    """Returns when the next node has ended the stream well; raises what it failed with."""
    if (error := await outgoing.ended) is not None:
        raise from_rpc_error(error, name)


def _first(errors: BaseExceptionGroup[MdiError]) -> MdiError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, MdiError)
    return error
