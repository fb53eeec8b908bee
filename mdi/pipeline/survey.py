"""Who is here: the members that answer, those that do not and why, and nodes of other clusters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mdi.cluster.certificates import Authority
from mdi.cluster.discovery import Directory
from mdi.cluster.home import Home
from mdi.cluster.identity import Identity
from mdi.cluster.interfaces import MAX_ADDRESSES
from mdi.cluster.key import ClusterKey
from mdi.cluster.members import Member, Source
from mdi.cluster.peers import PeerAddress, parse_peer
from mdi.cluster.probe import PROBE_TIMEOUT_S, probe_certificate
from mdi.cluster.resolve import resolve_peer
from mdi.errors import InternalError, LinkError, MdiError
from mdi.node.dial import Dialler, NodeAddress
from mdi.pipeline.peer import Peer, connect
from mdi.wire import mdi_pb2 as pb

LOOPBACK = "127.0.0.1"
AGAIN_TIMEOUT_S = (
    1.5  # for a node that may have come back, while an answer waits: as long as one that is there may take to say how it is
)


@dataclass(frozen=True, slots=True)
class StageRow:
    """`speed` of its last steps in decoding, as a share of what the node's own profile says: None until there were some."""

    model: str
    start: int
    stop: int
    bytes: int
    starter_id: str
    speed: float | None = None


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One line of `mdi nodes`. `problem` says why a node is not reachable; what only it could tell is None then."""

    node_id: str
    name: str
    address: str
    source: str
    problem: str | None = None
    version: str | None = None
    cpu: str | None = None
    threads: int | None = None
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_offered_bytes: int | None = None
    memory_used_bytes: int | None = None
    uptime_s: float | None = None
    device: str | None = None
    accelerator: str | None = None
    stages: tuple[StageRow, ...] = ()

    @property
    def reachable(self) -> bool:
        return self.problem is None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"reachable": self.reachable}


@dataclass(frozen=True, slots=True)
class NodeList:
    """`strangers` counts nodes that were heard of but hold another cluster key."""

    rows: tuple[NodeRow, ...]
    strangers: int

    def to_json(self) -> dict[str, Any]:
        return {"nodes": [row.to_json() for row in self.rows], "strangers": self.strangers}


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A member that answered. `hang_up` closes its channel, which is closed with the house otherwise."""

    member: Member
    peer: Peer
    info: pb.NodeInfo
    hang_up: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Look:
    """How this house's nodes were looked for, to look again. `named` are addresses given by hand; channels belong to `stack`."""

    authority: Authority
    named: tuple[PeerAddress, ...]
    discovery: bool
    wait_s: float
    stack: AsyncExitStack


@dataclass(slots=True)
class House:
    """This device's place in its cluster. `own` is the daemon that runs from the same home: the same node as this process."""

    home: Home
    node_id: str
    dialler: Dialler
    own: Neighbour | None = None
    others: list[Neighbour] = field(default_factory=list)
    problems: list[NodeRow] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)  # sentences for the user about what is here but does not work
    strangers: int = 0
    look: Look | None = None

    def drop(self, neighbour: Neighbour, problem: str) -> None:
        """Leaves a node out that answered at first and failed later."""
        self.others.remove(neighbour)
        self.problems.append(_row(neighbour.member, None, problem))


@asynccontextmanager
async def open_house(
    home: Home, peers: tuple[str, ...], *, discovery: bool, wait_s: float, enough: int | None = None
) -> AsyncIterator[House]:
    """Finds the cluster's nodes and connects to each. Waits `wait_s`, or until `enough` other nodes were found.

    A node that fails is listed in `problems`; it never stops the others. Raises UserError for an address that is none, and MdiError
    for a node that was named by hand and cannot be used.
    """
    authority = Authority.of(_key(home))
    identity = Identity.load_or_create(home)
    named = [parse_peer(text) for text in (*peers, *home.read_peers())]
    async with AsyncExitStack() as stack:
        house = House(home, identity.node_id, Dialler(authority.issue(identity)))
        house.look = Look(authority, tuple(named), discovery, wait_s, stack)
        members, house.strangers = await _find(house, authority, named, len(peers), discovery, wait_s, enough)
        results = await asyncio.gather(*(_greet(stack, house, member) for member in members))
        for member, result in zip(members, results, strict=True):
            if isinstance(result, MdiError):
                if PeerAddress(member.addresses[0], member.port) in named[: len(peers)]:
                    raise result
                house.problems.append(_row(member, None, str(result)))
            elif member.node_id == house.node_id:
                house.own = result
            else:
                house.others.append(result)
        yield house


async def look_again(house: House, lost: Collection[str]) -> None:
    """Adds nodes that came meanwhile to `others`, and dials those `lost` (ids) anew: a channel that failed waits before it tries again.

    Takes as long as the first look did, and AGAIN_TIMEOUT_S for nodes that do not answer: they are left as they were.
    """
    look = house.look
    if look is None:
        raise InternalError("this house was not opened")
    members, _ = await _find(house, look.authority, list(look.named), 0, look.discovery, look.wait_s, None, AGAIN_TIMEOUT_S)
    known = {neighbour.info.node_id: neighbour for neighbour in house.others}

    async def greet(member: Member) -> None:
        try:
            async with asyncio.timeout(AGAIN_TIMEOUT_S):
                found = await _greet(look.stack, house, member)
        except TimeoutError:
            return
        if isinstance(found, Neighbour):
            if (before := known.get(member.node_id)) is not None:
                house.others.remove(before)
                await before.hang_up()
            house.others.append(found)

    await asyncio.gather(
        *(greet(member) for member in members if member.node_id != house.node_id and member.node_id not in known.keys() - lost)
    )


def _key(home: Home) -> ClusterKey:
    """This home's key. Where there is none, one that nobody else has: only `mdi node start` founds a cluster, and shows its key.

    Raises UserError for a key file that was named and is not there, or that cannot be used.
    """
    if home.key_file is None and not home.key_path.exists():
        return ClusterKey.generate()
    return ClusterKey.load(home)


async def list_nodes(home: Home, peers: tuple[str, ...], discovery: bool, wait_s: float) -> NodeList:
    """The nodes of this cluster and how they are."""
    async with open_house(home, peers, discovery=discovery, wait_s=wait_s) as house:
        answered = [house.own] if house.own else []
        rows = [_row(each.member, each.info) for each in (*answered, *house.others)]
        return NodeList((*rows, *house.problems), house.strangers)


async def _find(
    house: House,
    authority: Authority,
    named: list[PeerAddress],
    n_required: int,
    discovery: bool,
    wait_s: float,
    enough: int | None,
    probe_timeout_s: float = PROBE_TIMEOUT_S,
) -> tuple[list[Member], int]:
    """Members by id: this device's own daemon, those named by hand, and those that mDNS finds."""
    found: dict[str, Member] = {}
    if (running := house.home.running()) is not None:
        own = Member(running.node_id, running.name, (LOOPBACK,), running.port, None, authority.fingerprint, Source.SELF)
        found[own.node_id] = own
    async with asyncio.TaskGroup() as tasks:
        probes = [tasks.create_task(_probe_name(peer, authority, probe_timeout_s), name=f"probe {peer}") for peer in named]
        heard, strangers = await _listen(authority.fingerprint, wait_s, enough) if discovery else ((), 0)
    found = {member.node_id: member for member in heard} | found
    for i, result in enumerate(probe.result() for probe in probes):
        if isinstance(result, MdiError) and i < n_required:
            raise result  # named on this command line: the user wants to know
        for member in result if isinstance(result, list) else ():
            found[member.node_id] = with_address(found.get(member.node_id), member)
    return list(found.values()), strangers


def with_address(known: Member | None, probed: Member) -> Member:
    """A member of which an address has just been proved, and may be known already: first the addresses named by hand, then those heard.

    What was heard stays, for other nodes may reach the node there alone; but only at one port.
    """
    if known is None or known.source is Source.SELF:
        return known or probed
    first, then = (known, probed) if known.source is Source.STATIC else (probed, known)
    if first.port != then.port:
        return first
    addresses = tuple(dict.fromkeys((*first.addresses, *then.addresses)))[:MAX_ADDRESSES]
    return replace(probed, name=known.name, addresses=addresses, protocol=known.protocol)


async def _listen(fingerprint: str, wait_s: float, enough: int | None) -> tuple[tuple[Member, ...], int]:
    try:
        async with Directory(fingerprint) as directory:
            members = await directory.wait_for(enough if enough is not None else 1 << 30, wait_s)
            return members, len(directory.strangers())
    except LinkError:
        return (), 0  # no multicast on this device: those named by hand are all there is


async def _probe_name(peer: PeerAddress, authority: Authority, timeout_s: float) -> list[Member] | MdiError:
    """The nodes that answer under one name; an error only if none does."""
    try:
        addresses = await resolve_peer(peer)
    except MdiError as error:
        return error
    results = await asyncio.gather(*(_probe(address, authority, timeout_s) for address in addresses))
    members = [result for result in results if isinstance(result, Member)]
    return members or next(result for result in results if isinstance(result, MdiError))


async def _probe(peer: PeerAddress, authority: Authority, timeout_s: float) -> Member | MdiError:
    try:
        node_id = await probe_certificate(peer, authority, timeout_s=timeout_s)
    except MdiError as error:
        return error
    return Member(node_id, peer.host, (peer.host,), peer.port, None, authority.fingerprint, Source.STATIC)


async def _greet(stack: AsyncExitStack, house: House, member: Member) -> Neighbour | MdiError:
    address = NodeAddress(member.node_id, member.name, member.addresses, member.port)
    async with AsyncExitStack() as own:
        try:
            peer = await own.enter_async_context(connect(house.dialler, address))
            info = await peer.info()
        except MdiError as error:
            return error
        kept = own.pop_all()  # of one that fails nothing stays open
    stack.push_async_callback(kept.aclose)
    peer.address = NodeAddress(member.node_id, info.name, member.addresses, member.port)
    return Neighbour(member, peer, info, kept.aclose)


def _row(member: Member, info: pb.NodeInfo | None, problem: str | None = None) -> NodeRow:
    address = str(PeerAddress(member.addresses[0].partition("%")[0], member.port))
    if info is None:
        return NodeRow(member.node_id, member.name, address, member.source.value, problem)
    return NodeRow(
        member.node_id,
        info.name,
        address,
        member.source.value,
        None,
        info.version,
        info.cpu,
        info.threads,
        info.memory_total_bytes,
        info.memory_available_bytes,
        info.memory_offered_bytes,
        info.memory_used_bytes,
        info.uptime_s,
        info.device,
        info.accelerator or None,
        tuple(
            StageRow(stage.model, stage.start, stage.stop, stage.bytes, stage.starter_id, stage.speed or None)
            for stage in info.stages
        ),
    )
