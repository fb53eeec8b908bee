"""The starter's two ends of the ring: frames go to the first worker, results come from the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import grpc

from mdi.errors import LinkError, MdiError
from mdi.node.dial import Dialler, NodeAddress
from mdi.wire.ring import Flow, RingTarget, collect
from mdi.wire.status import from_rpc_error


class Ring(Protocol):
    """What the drive loop needs of the workers."""

    @property
    def failure(self) -> MdiError | None: ...
    def on_failure(self, call: Callable[[], None]) -> None: ...
    async def send(self, frame: bytes) -> None: ...
    async def receive(self) -> bytes: ...


class GrpcRing:
    """Open calls to the first and the last worker. A failure anywhere in the ring ends `receive` with what failed."""

    def __init__(self, outgoing: Flow, first: str, incoming: Any, last: str, step_timeout_s: float) -> None:
        self._outgoing = outgoing
        self._first = first
        self._incoming = incoming
        self._last = last
        self._step_timeout_s = step_timeout_s
        self._failure: MdiError | None = None
        self._on_failure: Callable[[], None] | None = None

    @property
    def failure(self) -> MdiError | None:
        """What the first worker ended the stream with; None while it is open."""
        return self._failure

    def on_failure(self, call: Callable[[], None]) -> None:
        """`call` is called when `failure` is set: between answers nobody sends, and so nobody else would notice."""
        self._on_failure = call

    async def send(self, frame: bytes) -> None:
        """Raises LinkError or what the workers failed with."""
        await self._call(self._outgoing.send(frame), self._first)

    async def receive(self) -> bytes:
        """The next result frame. Raises LinkError after `step_timeout_s`, or what the workers failed with."""
        data = await self._call(self._incoming.read(), self._last)
        if not isinstance(data, bytes):
            raise self._failure or _ended(self._last)
        return data

    async def watch(self) -> None:
        """Ends when the first worker ends the outgoing stream; a failure there ends `receive`, which waits for the last worker."""
        error = await self._outgoing.ended
        self._failure = from_rpc_error(error, self._first) if error else _ended(self._first)
        self._incoming.cancel()
        if self._on_failure is not None:
            self._on_failure()

    async def _call(self, operation: Awaitable[Any], name: str) -> Any:
        try:
            async with asyncio.timeout(self._step_timeout_s):
                return await operation
        except MdiError as error:
            raise self._failure or error from None
        except TimeoutError:
            raise LinkError(
                f"{name} did not answer within {self._step_timeout_s:.0f} s", hint="is one of the nodes frozen? see `mdi nodes`"
            ) from None
        except grpc.aio.AioRpcError as error:
            raise self._failure or from_rpc_error(error, name) from error
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise self._failure or _ended(name) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._failure is not None and task is not None and not task.cancelling():
                raise self._failure from None  # `watch` cancelled the call, nobody cancelled us
            raise


def _ended(name: str) -> LinkError:
    return LinkError(f"{name} ended the stream", hint="look at that node's log, then run again")


@asynccontextmanager
async def open_ring(
    dialler: Dialler, target: RingTarget, workers: list[NodeAddress], step_timeout_s: float
) -> AsyncIterator[GrpcRing]:
    """Streams to loaded stages; leaving the context ends them."""
    async with AsyncExitStack() as stack:
        first, last = workers[0], workers[-1]
        to_first = await stack.enter_async_context(dialler.open(first))
        to_last = to_first if len(workers) == 1 else await stack.enter_async_context(dialler.open(last))
        outgoing, incoming = Flow(to_first, target, first.name), collect(to_last, target)
        ring = GrpcRing(outgoing, first.name, incoming, last.name, step_timeout_s)
        watcher = asyncio.create_task(ring.watch(), name="watch the ring")
        try:
            yield ring
        finally:
            watcher.cancel()
            outgoing.cancel()
            incoming.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
