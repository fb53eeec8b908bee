"""The link from one node to another: how long frames of two sizes take, one way, measured between the two themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import grpc

from mdi.errors import LinkError, UserError
from mdi.wire.frame import MAX_FRAME_BYTES
from mdi.wire.status import ending, from_rpc_error

ECHO_METHOD = "Echo"
ECHO_SERVICE = "mdi.Link"
MAX_ECHOES = 64  # per call: an echo is for a measurement, not for traffic
WARM_UP = 2  # the first messages open the HTTP/2 windows
SMALL_ROUNDS = 15
LARGE_ROUNDS = 4
# In decoding, a frame finds both ends asleep, as they wait for the computation: back-to-back echoes would flatter a link threefold.
PAUSE_S = 0.01
MEASURE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """Seconds one way for a frame of decode size and for one of prefill size."""

    decode_s: float
    prefill_s: float


async def _echo(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
    count = 0
    async for message in messages:
        count += 1
        if count > MAX_ECHOES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {MAX_ECHOES} echoes in a call")
        await context.write(message)


def echo_handler() -> grpc.GenericRpcHandler:
    """What a server needs to be measured."""
    return grpc.method_handlers_generic_handler(ECHO_SERVICE, {ECHO_METHOD: grpc.stream_stream_rpc_method_handler(_echo)})


async def measure_link(channel: grpc.aio.Channel, peer: str, *, decode_bytes: int, prefill_bytes: int) -> LinkTimes:
    """Half the median round trip of each size. Raises LinkError when the peer falls silent."""
    for name, value in (("decode_bytes", decode_bytes), ("prefill_bytes", prefill_bytes)):
        if not 1 <= value <= MAX_FRAME_BYTES:
            raise UserError(f"{name} is {value}, outside 1 to {MAX_FRAME_BYTES}")
    call = channel.stream_stream(f"/{ECHO_SERVICE}/{ECHO_METHOD}")()
    ended = ending(call)
    try:
        async with asyncio.timeout(MEASURE_TIMEOUT_S):
            decode_s = await _one_way_s(call, peer, bytes(decode_bytes), SMALL_ROUNDS)
            prefill_s = await _one_way_s(call, peer, bytes(prefill_bytes), LARGE_ROUNDS)
            await call.done_writing()
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, peer) from error
    except asyncio.InvalidStateError:  # a write after the peer had ended the call: its status says why
        status = await ended
        raise (from_rpc_error(status, peer) if status else _ended(peer)) from None
    except TimeoutError:
        raise LinkError(
            f"{peer} did not echo within {MEASURE_TIMEOUT_S:g} s", hint=f"look at the link: mdi doctor {peer}"
        ) from None
    finally:
        call.cancel()
    return LinkTimes(decode_s, max(prefill_s, decode_s))


def _ended(peer: str) -> LinkError:
    return LinkError(f"{peer} ended a measurement of the link", hint="is that node shutting down? see `mdi nodes`")


async def _one_way_s(call: Any, peer: str, message: bytes, rounds: int) -> float:
    times = []
    for _ in range(WARM_UP + rounds):
        await asyncio.sleep(PAUSE_S)
        started = time.perf_counter()
        await call.write(message)
        if await call.read() is grpc.aio.EOF:
            raise _ended(peer)
        times.append(time.perf_counter() - started)
    return median(times[WARM_UP:]) / 2
