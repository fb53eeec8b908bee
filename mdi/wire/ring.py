"""The data plane's two methods, raw bytes without protobuf. The frames in them: mdi/wire/frame.py.

    Flow     a stage (or the starter) streams frames to the next stage; nothing comes back but the status that ends the call
    Collect  the starter asks the last stage; result frames stream back, so that the starter needs no inbound port

Both calls say in their metadata which session's stage and which epoch they belong to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import msgpack

from mdi.errors import FrameError, LinkError, MdiError
from mdi.wire.frame import MAX_COUNTER
from mdi.wire.status import ending, from_rpc_error

SERVICE = "mdi.Ring"
TARGET_KEY = "mdi-ring-bin"
MAX_SESSION_CHARS = 64

FlowHandler: TypeAlias = Callable[[AsyncIterator[bytes], grpc.aio.ServicerContext], Awaitable[None]]
CollectHandler: TypeAlias = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RingTarget:
    """Which loaded stage a call means."""

    session: str
    epoch: int

    def __post_init__(self) -> None:
        if type(self.session) is not str or not 0 < len(self.session) <= MAX_SESSION_CHARS:
            raise FrameError(f"A call was refused: session must be 1 to {MAX_SESSION_CHARS} characters.")
        if type(self.epoch) is not int or not 0 <= self.epoch <= MAX_COUNTER:
            raise FrameError(f"A call was refused: epoch must be an integer from 0 to {MAX_COUNTER}.")


class Flow:
    """Sends frames to the node `peer` (its name, for messages). `ended` resolves when the call does: None for success."""

    def __init__(self, channel: grpc.aio.Channel, target: RingTarget, peer: str) -> None:
        self._call = channel.stream_stream(f"/{SERVICE}/Flow")(metadata=_metadata(target))
        self._peer = peer
        self.ended = ending(self._call)

    async def send(self, frame: bytes) -> None:
        """Returns when gRPC has taken the frame, not when it arrived. Raises the error that the peer ended the call with.

        Cancelling it, as a deadline does, ends the call: a frame half sent cannot be taken back.
        """
        try:
            await self._call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise self._error(await self.ended) from None

    async def close(self) -> None:
        """Says that no more frames come, and waits for the peer's verdict. Raises as `send` does."""
        with suppress(grpc.aio.BaseError):  # when the peer ends the call meanwhile; how, `ended` tells
            await self._call.done_writing()
        if (error := await self.ended) is not None:
            raise self._error(error)

    def cancel(self) -> None:
        self._call.cancel()

    def _error(self, error: grpc.aio.AioRpcError | None) -> MdiError:
        return from_rpc_error(error, self._peer) if error else LinkError(f"{self._peer} ended the stream of frames.")


def collect(channel: grpc.aio.Channel, target: RingTarget) -> Any:
    """Opens a Collect: `await call.read()` is the bytes of the next result frame, or `grpc.aio.EOF`."""
    return channel.unary_stream(f"/{SERVICE}/Collect")(b"", metadata=_metadata(target))


def handlers(on_flow: FlowHandler, on_collect: CollectHandler) -> grpc.GenericRpcHandler:
    """What a server needs to answer both: `server.add_generic_rpc_handlers((handlers(...),))`.

    `on_flow(frames, context)` returns when the stream ends; `on_collect(b"", context)` writes with `context.write`.
    """
    methods = {
        "Flow": grpc.stream_stream_rpc_method_handler(on_flow),
        "Collect": grpc.unary_stream_rpc_method_handler(on_collect),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def target_of(context: grpc.aio.ServicerContext) -> RingTarget:
    """Which stage the caller means. Raises FrameError."""
    packed = next((value for key, value in context.invocation_metadata() or () if key == TARGET_KEY), None)
    try:
        session, epoch = msgpack.unpackb(packed, max_str_len=4 * MAX_SESSION_CHARS, max_array_len=2, max_map_len=0)
    except (ValueError, TypeError, msgpack.UnpackException):
        raise FrameError(f"A call was refused: {TARGET_KEY} must be a session and an epoch.") from None
    return RingTarget(session, epoch)


def _metadata(target: RingTarget) -> tuple[tuple[str, bytes], ...]:
    return ((TARGET_KEY, msgpack.packb((target.session, target.epoch))),)
