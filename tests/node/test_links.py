"""The measurement of a link over real channels, to a node that echoes and to those that stop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from mdi.cluster.certificates import issue_credentials
from mdi.cluster.identity import Identity
from mdi.cluster.key import ClusterKey
from mdi.errors import LinkError, PeerError
from mdi.node.links import ECHO_METHOD, ECHO_SERVICE, echo_handler, measure_link
from mdi.wire.channel import new_server, open_channel, server_credentials, target

pytestmark = pytest.mark.timeout(60)
KEY, HERE, THERE = ClusterKey.generate(), Identity.generate(), Identity.generate()

Echo = Callable[[AsyncIterator[bytes], grpc.aio.ServicerContext], Awaitable[None]]


@asynccontextmanager
async def linked(handler: grpc.GenericRpcHandler) -> AsyncIterator[grpc.aio.Channel]:
    server = new_server([handler])
    port = server.add_secure_port("127.0.0.1:0", server_credentials(issue_credentials(KEY, THERE)))
    await server.start()
    try:
        async with open_channel(target("127.0.0.1", port), issue_credentials(KEY, HERE), THERE.node_id) as channel:
            yield channel
    finally:
        await server.stop(None)


def handler(echo: Echo) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(ECHO_SERVICE, {ECHO_METHOD: grpc.stream_stream_rpc_method_handler(echo)})


async def test_a_large_frame_takes_no_less_than_a_small_one() -> None:
    async with linked(echo_handler()) as channel:
        times = await measure_link(channel, "pi", decode_bytes=16, prefill_bytes=1 << 20)
    assert 0 < times.decode_s <= times.prefill_s


async def test_a_peer_that_fails_between_two_echoes_is_named() -> None:
    """The next write then finds a call that has ended, which gRPC does not raise as an error of the call."""

    async def fail(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        await context.write(await anext(aiter(messages)))
        await context.abort(grpc.StatusCode.ABORTED, "out of memory")

    async with linked(handler(fail)) as channel:
        with pytest.raises(PeerError, match=r"pi .*out of memory"):
            await measure_link(channel, "pi", decode_bytes=16, prefill_bytes=16)


@pytest.mark.parametrize("n_echoes", [0, 1])
async def test_a_peer_that_ends_the_call_well_has_measured_nothing(n_echoes: int) -> None:
    async def leave(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        for _ in range(n_echoes):
            await context.write(await anext(aiter(messages)))

    async with linked(handler(leave)) as channel:
        with pytest.raises(LinkError, match="pi ended a measurement"):
            await measure_link(channel, "pi", decode_bytes=16, prefill_bytes=16)
