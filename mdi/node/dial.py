"""How one node calls another: the address that answers, the channel, and errors that name the peer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from mdi.errors import LinkError
from mdi.wire.channel import PemCredentials, open_channel, target

CONNECT_TIMEOUT_S = 5.0  # for all addresses together; a sleeping Wi-Fi radio answers within two
NEXT_ADDRESS_DELAY_S = 0.25  # RFC 8305: the next address is tried when the last one has not answered so soon


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """A node that may be dialled: its certificate must carry `node_id`; `addresses` are tried in order."""

    node_id: str
    name: str
    addresses: tuple[str, ...]
    port: int


class Dialler:
    """Opens channels with this node's certificate."""

    def __init__(self, credentials: PemCredentials) -> None:
        self._credentials = credentials

    @asynccontextmanager
    async def open(self, node: NodeAddress) -> AsyncIterator[grpc.aio.Channel]:
        """A channel to the first address that accepts a connection. Raises LinkError when none does."""
        address = await _answering(node)
        channel = open_channel(target(address, node.port), self._credentials, node.node_id)
        try:
            yield channel
        finally:
            await channel.close()


async def _answering(node: NodeAddress) -> str:
    if len(node.addresses) == 1:
        return node.addresses[0]
    attempts = [
        asyncio.create_task(_try(address, node.port, i * NEXT_ADDRESS_DELAY_S)) for i, address in enumerate(node.addresses)
    ]
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            for attempt in asyncio.as_completed(attempts):
                if (address := await attempt) is not None:
                    return address
    except TimeoutError:
        pass
    finally:
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
    shown = ", ".join(target(address, node.port) for address in node.addresses)
    raise LinkError(f"{node.name} cannot be reached at {shown}", hint="is it on, and does a firewall let the port through?")


async def _try(address: str, port: int, delay_s: float) -> str | None:
    await asyncio.sleep(delay_s)
    try:
        _, writer = await asyncio.open_connection(address, port)
    except OSError:
        return None
    writer.close()
    return address
