"""A link between two nodes: how long frames of two sizes take, each way, measured between the two themselves."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import grpc

from mdi.errors import FrameError, LinkError, PeerError
from mdi.profile.cold import Chill
from mdi.wire.frame import MAX_FRAME_BYTES
from mdi.wire.status import abort, ending, from_rpc_error

EXCHANGE_METHOD = "Exchange"
EXCHANGE_SERVICE = "mdi.Link"
MAX_EXCHANGES = 64  # per call: it is for a measurement, not for traffic
SIZE_BYTES = 4  # a message begins with the size of the reply that it wants

# The sizes that are measured; others lie on the lines between. One token of a model with 4096 activations, and the largest frame.
DECODE_BYTES = (16 << 10) + 128
PREFILL_BYTES = (1 << 20) + 128

WARM_UP = 2  # the first messages open the HTTP/2 windows
TINY_ROUNDS = 9
DECODE_ROUNDS = 9
PREFILL_ROUNDS = 4
BOX_S = 0.4  # for one size and direction, so that eight nodes are measured within 15 s; one round is always finished
# In decoding, a frame finds both ends asleep, as they wait for the computation: back-to-back messages would flatter a link threefold.
# Pauses differ, so that they are in step with nothing that comes again and again, such as a clock tick or a slice of processor time.
PAUSES_S = (0.009, 0.015)
# And it finds their caches full of weights, which makes programs of Python and gRPC slower by half again and more. So both ends read
# memory in the pause; it must end within it on the slower one too.
CHILL_S = 0.008
MAX_PROBE_S = 1.0  # a prefill frame that would take longer is measured by a smaller one
MEASURE_TIMEOUT_S = 25.0


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """One direction: seconds there and back of a message without content, and one way for frames of DECODE_BYTES and PREFILL_BYTES."""

    round_trip_s: float
    decode_s: float
    prefill_s: float

    def __post_init__(self) -> None:
        times = (self.round_trip_s, self.decode_s, self.prefill_s)
        if not all(math.isfinite(each) and each >= 0 for each in times):
            raise PeerError(f"a link was measured as {times}, which are no times")

    def seconds(self, n_bytes: int) -> float:
        """One way for a frame of any size: on the line between the measured sizes, and beyond the larger one on the same line."""
        half_s = self.round_trip_s / 2
        if n_bytes <= DECODE_BYTES:
            return half_s + (self.decode_s - half_s) * n_bytes / DECODE_BYTES
        slope = (self.prefill_s - self.decode_s) / (PREFILL_BYTES - DECODE_BYTES)
        return self.decode_s + slope * (n_bytes - DECODE_BYTES)


@dataclass(frozen=True, slots=True)
class Link:
    """Both directions between two nodes, seen from the one that measured."""

    there: LinkTimes
    back: LinkTimes

    @property
    def reversed(self) -> Link:
        return Link(self.back, self.there)


async def _exchange(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
    count, chill = 0, Chill(CHILL_S)
    async for message in messages:
        count += 1
        size = int.from_bytes(message[:SIZE_BYTES], "little")
        if count > MAX_EXCHANGES or len(message) < SIZE_BYTES or not 1 <= size <= MAX_FRAME_BYTES:
            await abort(
                context, FrameError(f"a measurement is at most {MAX_EXCHANGES} replies of 1 to {MAX_FRAME_BYTES} bytes")
            )
        await context.write(bytes(size))
        await asyncio.to_thread(chill)


def exchange_handler() -> grpc.GenericRpcHandler:
    """What a server needs to be measured: it answers each message with as many bytes as that asks for."""
    handler = grpc.stream_stream_rpc_method_handler(_exchange)
    return grpc.method_handlers_generic_handler(EXCHANGE_SERVICE, {EXCHANGE_METHOD: handler})


async def measure_link(channel: grpc.aio.Channel, peer: str) -> Link:
    """Takes half a second on a home network, some seconds on a link of 10 Mbit/s. Raises LinkError when the peer falls silent."""
    call = channel.stream_stream(f"/{EXCHANGE_SERVICE}/{EXCHANGE_METHOD}")()
    ended = ending(call)
    try:
        async with asyncio.timeout(MEASURE_TIMEOUT_S):
            link = await _measure(_Exchanges(call, peer, Chill(CHILL_S)))
            await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the second when the peer ended the call while we wrote
        if (error := await ended) is not None:
            raise from_rpc_error(error, peer) from error
        raise _ended(peer) from None
    except TimeoutError:
        raise LinkError(
            f"{peer} did not answer within {MEASURE_TIMEOUT_S:g} s", hint=f"look at the link: mdi doctor {peer}"
        ) from None
    finally:
        call.cancel()
    return link


def _ended(peer: str) -> LinkError:
    return LinkError(f"{peer} ended a measurement of the link", hint="is that node shutting down? see `mdi nodes`")


@dataclass(frozen=True, slots=True)
class _Exchanges:
    """One call to the node `peer`, in which messages are answered one after another."""

    call: Any
    peer: str
    chill: Chill

    async def median_s(self, sent: int, wanted: int, rounds: int, warm_up: int) -> float:
        """Seconds from a message of `sent` bytes until the reply of `wanted` is there."""
        message = wanted.to_bytes(SIZE_BYTES, "little") + bytes(sent - SIZE_BYTES)
        times: list[float] = []
        ends_s = time.perf_counter() + BOX_S
        while len(times) < warm_up + rounds and (not times or time.perf_counter() < ends_s):
            await asyncio.gather(asyncio.sleep(random.uniform(*PAUSES_S)), asyncio.to_thread(self.chill))
            started_s = time.perf_counter()
            await self.call.write(message)
            reply = await self.call.read()
            times.append(time.perf_counter() - started_s)
            if reply is grpc.aio.EOF or len(reply) != wanted:
                raise _ended(self.peer)
        return median(times[warm_up:] or times[-1:])


async def _measure(exchanges: _Exchanges) -> Link:
    round_trip_s = await exchanges.median_s(SIZE_BYTES, 1, TINY_ROUNDS, WARM_UP)
    half_s = round_trip_s / 2

    async def one_way_s(n_bytes: int, outward: bool, rounds: int, warm_up: int) -> float:
        """The way of the other, tiny message is half a round trip; noise must not make a frame faster than that."""
        sent, wanted = (n_bytes, 1) if outward else (SIZE_BYTES, n_bytes)
        return max(half_s, await exchanges.median_s(sent, wanted, rounds, warm_up) - half_s)

    directions = []
    for outward in (True, False):
        decode_s = await one_way_s(DECODE_BYTES, outward, DECODE_ROUNDS, WARM_UP)
        probe = probe_bytes(half_s, decode_s)
        probe_s = await one_way_s(probe, outward, PREFILL_ROUNDS, 1)
        prefill_s = half_s + (probe_s - half_s) * PREFILL_BYTES / probe
        directions.append(LinkTimes(round_trip_s, decode_s, max(decode_s, prefill_s)))
    return Link(*directions)


def probe_bytes(half_s: float, decode_s: float) -> int:
    """The size that is sent in the place of a prefill frame, so that a link of 1 Mbit/s is not measured for minutes."""
    expected_s = half_s + (decode_s - half_s) * PREFILL_BYTES / DECODE_BYTES
    if expected_s <= MAX_PROBE_S:
        return PREFILL_BYTES
    return max(DECODE_BYTES, int(PREFILL_BYTES * MAX_PROBE_S / expected_s))


def check_sizes(decode_bytes: int, prefill_bytes: int) -> None:
    """For a caller that was told sizes: both ends must mean the same. Raises PeerError."""
    if (decode_bytes, prefill_bytes) != (DECODE_BYTES, PREFILL_BYTES):
        raise PeerError(
            f"links are measured with {DECODE_BYTES} and {PREFILL_BYTES} bytes, not {decode_bytes} and {prefill_bytes}",
            hint="install the same version of MDI on both devices",
        )
