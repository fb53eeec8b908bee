"""Links measured over real gRPC with mutual TLS on loopback. What rates and delays do to them: tests/tools/testbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from mdi.cluster.certificates import issue_credentials
from mdi.cluster.home import Home
from mdi.cluster.identity import Identity
from mdi.cluster.key import ClusterKey
from mdi.errors import FrameError, LinkError, PeerError, WrongVersion
from mdi.node import links
from mdi.node.links import (
    DECODE_BYTES,
    MAX_EXCHANGES,
    PREFILL_BYTES,
    Link,
    LinkTimes,
    check_sizes,
    exchange_handler,
    measure_link,
    probe_bytes,
)
from mdi.node.messages import link_report, reported_link
from mdi.wire.channel import new_server, open_channel, server_credentials, target
from mdi.wire.frame import MAX_FRAME_BYTES
from mdi.wire.status import from_rpc_error


@asynccontextmanager
async def channel_to(handler: grpc.GenericRpcHandler | None, directory: Path) -> AsyncIterator[grpc.aio.Channel]:
    """To a server of the same cluster that has this handler."""
    identity = Identity.load_or_create(Home(directory).create())
    credentials = issue_credentials(ClusterKey.generate(), identity)
    server = new_server([handler] if handler else [])
    port = server.add_secure_port("127.0.0.1:0", server_credentials(credentials))
    await server.start()
    channel = open_channel(target("127.0.0.1", port), credentials, identity.node_id)
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(0)


def answering(reply: Callable[[bytes], bytes | None]) -> grpc.GenericRpcHandler:
    """Answers each message with `reply(message)`; ends the call at None."""

    async def exchange(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        async for message in messages:
            if (answer := reply(message)) is None:
                return
            await context.write(answer)

    method = {links.EXCHANGE_METHOD: grpc.stream_stream_rpc_method_handler(exchange)}
    return grpc.method_handlers_generic_handler(links.EXCHANGE_SERVICE, method)


async def test_a_link_is_measured_in_both_directions(tmp_path: Path) -> None:
    async with channel_to(exchange_handler(), tmp_path) as channel:
        link = await measure_link(channel, "peer")
    for times in (link.there, link.back):
        assert 0 < times.round_trip_s < 1
        assert times.round_trip_s / 2 <= times.decode_s <= times.prefill_s < 1
    assert link.there.round_trip_s == link.back.round_trip_s


async def test_the_server_answers_with_what_was_asked_for_and_refuses_the_rest(tmp_path: Path) -> None:
    async with channel_to(exchange_handler(), tmp_path) as channel:
        method = channel.stream_stream(f"/{links.EXCHANGE_SERVICE}/{links.EXCHANGE_METHOD}")
        call = method()
        for size in (1, 70_000):
            await call.write(size.to_bytes(4, "little") + b"padding")
            assert await call.read() == bytes(size)
        call.cancel()
        refused = [b"", b"abc", bytes(4), (MAX_FRAME_BYTES + 1).to_bytes(4, "little")]
        for message in refused:
            call = method()
            await call.write(message)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call.read()
            assert isinstance(from_rpc_error(error.value, "peer"), FrameError)
        call = method()
        for _ in range(MAX_EXCHANGES):
            await call.write((1).to_bytes(4, "little"))
            await call.read()
        await call.write((1).to_bytes(4, "little"))
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()


async def test_a_measurement_stays_within_what_the_server_allows(tmp_path: Path) -> None:
    asked = []

    def reply(message: bytes) -> bytes:
        asked.append(message)
        return bytes(int.from_bytes(message[:4], "little"))

    async with channel_to(answering(reply), tmp_path) as channel:
        await measure_link(channel, "peer")
    assert len(asked) <= MAX_EXCHANGES
    assert max(len(message) for message in asked) <= PREFILL_BYTES


@pytest.mark.parametrize("reply", [lambda message: b"short", lambda message: None])
async def test_a_peer_that_answers_wrongly_or_stops_is_an_error(tmp_path: Path, reply: Callable[[bytes], bytes | None]) -> None:
    async with channel_to(answering(reply), tmp_path) as channel:
        with pytest.raises(LinkError, match="ended a measurement"):
            await measure_link(channel, "peer")


async def test_a_peer_that_fails_between_two_replies_is_named(tmp_path: Path) -> None:
    """The next write then finds a call that has ended, which gRPC does not raise as an error of the call."""

    async def fail(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        await anext(aiter(messages))
        await context.write(bytes(1))
        await context.abort(grpc.StatusCode.ABORTED, "out of memory")

    method = {links.EXCHANGE_METHOD: grpc.stream_stream_rpc_method_handler(fail)}
    failing = grpc.method_handlers_generic_handler(links.EXCHANGE_SERVICE, method)
    async with channel_to(failing, tmp_path) as channel:
        with pytest.raises(PeerError, match=r"pi .*out of memory"):
            await measure_link(channel, "pi")


async def test_a_silent_peer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MEASURE_TIMEOUT_S", 0.2)
    done = asyncio.Event()

    async def listen(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        await done.wait()

    method = {links.EXCHANGE_METHOD: grpc.stream_stream_rpc_method_handler(listen)}
    silent = grpc.method_handlers_generic_handler(links.EXCHANGE_SERVICE, method)
    async with channel_to(silent, tmp_path) as channel:
        with pytest.raises(LinkError, match=r"did not answer within 0\.2 s"):
            await measure_link(channel, "peer")
        done.set()


async def test_a_peer_of_another_version_is_named(tmp_path: Path) -> None:
    async with channel_to(None, tmp_path) as channel:
        with pytest.raises(WrongVersion, match="peer"):
            await measure_link(channel, "peer")


def test_a_slow_link_is_probed_with_less_and_a_far_one_is_not() -> None:
    assert probe_bytes(0.0001, 0.0004) == PREFILL_BYTES
    assert probe_bytes(0.1, 0.101) == PREFILL_BYTES  # a long way, but a fast one
    slow = probe_bytes(0.001, 0.001 + DECODE_BYTES * 8 / 1e6)  # 1 Mbit/s
    assert DECODE_BYTES <= slow < PREFILL_BYTES // 7
    assert probe_bytes(0.0, 60.0) == DECODE_BYTES


def test_a_report_says_what_was_measured() -> None:
    link = Link(LinkTimes(0.002, 0.003, 0.1), LinkTimes(0.002, 0.004, 0.2))
    assert reported_link(link_report(link)) == link
    assert link.reversed.there == link.back
    report = link_report(link)
    report.back_prefill_s = float("nan")
    with pytest.raises(PeerError, match="no times"):
        reported_link(report)


def test_both_ends_must_mean_the_same_sizes() -> None:
    check_sizes(DECODE_BYTES, PREFILL_BYTES)
    with pytest.raises(PeerError, match="not 1 and 2"):
        check_sizes(1, 2)
