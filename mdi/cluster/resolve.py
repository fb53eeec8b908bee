"""One name that stands for several nodes: a headless service of Kubernetes, or a name with an address of every device."""

from __future__ import annotations

import asyncio
import socket

from mdi.cluster.members import MAX_MEMBERS
from mdi.cluster.peers import PeerAddress, is_ip_address
from mdi.errors import LinkError

RESOLVE_TIMEOUT_S = 5.0  # a resolver's first question and one repetition (resolv.conf: timeout 5)


async def resolve_peer(peer: PeerAddress) -> tuple[PeerAddress, ...]:
    """The peer itself, or each of its IPv4 addresses (IPv6 where it has none) if there is more than one, at most MAX_MEMBERS.

    Of one family, because a device with an address in both is one node. Raises LinkError if the name is not known.
    """
    if is_ip_address(peer.host):
        return (peer,)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await loop.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise LinkError(f"no answer about the name {peer.host!r} came", hint="try its IP address") from None
    except (OSError, UnicodeError) as error:
        raise LinkError(f"the name {peer.host!r} is not known on this network", hint="try its IP address") from error
    hosts = {
        family: list(dict.fromkeys(str(address[0]) for kind, _, _, _, address in found if kind == family))
        for family in (socket.AF_INET, socket.AF_INET6)
    }
    of_one_family = hosts[socket.AF_INET] or hosts[socket.AF_INET6]
    if len(of_one_family) < 2:
        return (peer,)
    return tuple(PeerAddress(host, peer.port) for host in of_one_family[:MAX_MEMBERS])
