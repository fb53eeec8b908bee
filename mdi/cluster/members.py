"""Who is here: the table of nodes that announced themselves or were named by hand. Pure: it hears of events, it makes none."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from mdi.cluster.identity import is_node_id
from mdi.cluster.interfaces import MAX_ADDRESSES
from mdi.cluster.peers import is_ip_address
from mdi.errors import PeerError

# mDNS is not authenticated: anybody on the network can announce any number of nodes. 256 is a full /24 home network, at below 1
# KiB each. Other clusters have a table of their own, so that they cannot crowd out this one.
MAX_MEMBERS = 256
MAX_NAME_CHARACTERS = 40  # with the id beside it, a name must fit a DNS label of 63 bytes

_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME_CHARACTERS}}}")
_FINGERPRINT = re.compile("[0-9a-f]{8}")
_log = logging.getLogger(__name__)


class Source(StrEnum):
    MDNS = "mdns"
    STATIC = "static"
    SELF = "self"


@dataclass(frozen=True, slots=True)
class Member:
    """A node that may be dialled. Only its certificate proves who it is.

    `addresses` are IP addresses, best first (a static peer may have a host name); `protocol` is None until it was asked
    (static).
    """

    node_id: str
    name: str
    addresses: tuple[str, ...]
    port: int
    protocol: int | None
    fingerprint: str
    source: Source

    def __post_init__(self) -> None:
        if not is_node_id(self.node_id):
            raise PeerError(f"{self.node_id[:80]!r} is not a node id")
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise PeerError(f"{self.fingerprint[:80]!r} is not the fingerprint of a cluster")
        if self.source is not Source.STATIC:
            # What comes from the network is printed on terminals and dialled: plain characters, literal addresses.
            if not _NAME.fullmatch(self.name):
                raise PeerError(f"{self.name[:80]!r} is not the name of a node")
            if not all(is_ip_address(address) for address in self.addresses):
                raise PeerError(f"node {self.node_id} announces addresses that are none")
        if not 1 <= len(self.addresses) <= MAX_ADDRESSES:
            raise PeerError(f"node {self.node_id} announces {len(self.addresses)} addresses (1 to {MAX_ADDRESSES})")
        if not 1 <= self.port <= 65535:
            raise PeerError(f"node {self.node_id} announces port {self.port}")
        if self.protocol is not None and not 1 <= self.protocol <= 65535:
            raise PeerError(f"node {self.node_id} announces protocol version {self.protocol}")


def clean_name(text: str) -> str:
    """A device name that may go on the network: letters, digits, `-` and `_`, at most 40."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text.split(".")[0]).strip("-")
    return name[:MAX_NAME_CHARACTERS] or "node"


class MemberTable:
    """Nodes by the name under which they announced themselves; the nodes of other clusters are kept apart."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._ours: dict[str, Member] = {}
        self._strangers: dict[str, Member] = {}

    def put(self, instance: str, member: Member) -> bool:
        """Add or replace a node. Returns whether anything changed; a full table takes nothing new."""
        table, other = (
            (self._ours, self._strangers) if member.fingerprint == self._fingerprint else (self._strangers, self._ours)
        )
        moved = other.pop(instance, None) is not None
        if table.get(instance) == member:
            return moved
        if instance not in table and len(table) >= MAX_MEMBERS:
            _log.debug("ignored node %s: %d are known already", member.node_id, MAX_MEMBERS)
            return moved
        table[instance] = member
        return True

    def remove(self, instance: str) -> bool:
        """Forget a node. Returns whether it was known."""
        return self._ours.pop(instance, None) is not None or self._strangers.pop(instance, None) is not None

    def members(self) -> tuple[Member, ...]:
        """The nodes of this cluster, one per node id, in a stable order (self first, then by name and id)."""
        return _distinct(self._ours.values())

    def strangers(self) -> tuple[Member, ...]:
        """The nodes that hold another cluster key."""
        return _distinct(self._strangers.values())


def _distinct(members: Iterable[Member]) -> tuple[Member, ...]:
    rank = {Source.SELF: 0, Source.STATIC: 1, Source.MDNS: 2}  # what is known for sure comes before what was heard
    by_rank = sorted(members, key=lambda m: rank[m.source], reverse=True)
    by_id = {m.node_id: m for m in by_rank}
    return tuple(sorted(by_id.values(), key=lambda m: (m.source is not Source.SELF, m.name, m.node_id)))
