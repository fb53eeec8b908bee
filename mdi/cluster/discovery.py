"""Nodes find each other by multicast DNS (RFC 6762, 6763): no server, no configuration.

A node announces `<name> <start of its id>._mdi._tcp.local.` with its addresses and port, and a TXT record of its id, the
cluster's fingerprint and the protocol version; nothing else. None of it is authenticated: TLS proves a node when it is dialled.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from mdi.cluster.interfaces import (
    MAX_ADDRESSES,
    Interface,
    advertised_addresses,
    choose_interfaces,
    multicast_sockets,
    read_interfaces,
)
from mdi.cluster.members import MAX_MEMBERS, Member, MemberTable, Source
from mdi.errors import LinkError, PeerError, UserError

SERVICE_TYPE = "_mdi._tcp.local."
RECORD_TTL_S = 120  # RFC 6762 (10) for records that name a host; a killed node is forgotten after this time at the latest
CHECK_INTERVAL_S = 5.0  # looks at the interfaces and at expired records: one pass takes below 2 ms
RESOLVE_TIMEOUT_S = 3.0  # three questions, 1 s apart
CLOSE_TIMEOUT_S = 3.0  # a goodbye is three packets within 0.3 s
MAX_INSTANCES = 2 * MAX_MEMBERS  # names heard: this cluster's and the others'
MAX_RESOLVING = 32  # questions asked at once; the rest wait for the next check
ID_CHARACTERS_IN_NAME = 12

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What a node tells about itself; `name` must have passed `clean_name`. `only_at`: the one IP address that it listens on."""

    node_id: str
    name: str
    port: int
    protocol: int
    only_at: str | None = None


class Directory:
    """Knows the nodes of one cluster while its context is open, and announces this one if `advertise` is given.

    `interfaces` limits it to interfaces with these names or addresses (default: see `choose_interfaces`). All methods belong to
    the event loop that opened it. Opening raises UserError (no such interface) or LinkError (no multicast on this device).
    """

    def __init__(
        self,
        fingerprint: str,
        *,
        advertise: Advertisement | None = None,
        interfaces: Sequence[str] = (),
        check_interval_s: float = CHECK_INTERVAL_S,
        ttl_s: int = RECORD_TTL_S,
    ) -> None:
        self._fingerprint = fingerprint
        self._advertise = advertise
        self._only = tuple(interfaces)
        self._check_interval_s = check_interval_s
        self._ttl_s = ttl_s
        self._table = MemberTable(fingerprint)
        self._changed = asyncio.Event()
        self._instances: set[str] = set()
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._announcing: asyncio.Future[None] | None = None
        self._addresses: tuple[str, ...] = ()
        self._own_instance = (
            f"{advertise.name} {advertise.node_id[:ID_CHARACTERS_IN_NAME]}.{SERVICE_TYPE}" if advertise else None
        )

    async def __aenter__(self) -> Self:
        chosen = choose_interfaces(read_interfaces(), self._only)
        try:
            self._mdns = AsyncZeroconf(interfaces=multicast_sockets(chosen))
            await self._mdns.zeroconf.async_wait_for_start()
        except OSError as error:
            raise LinkError(
                f"this device cannot use multicast DNS: {error.strerror or error}",
                hint="name the other devices with --peer HOST",
            ) from error
        try:
            await self._announce(chosen)
            self._browser = AsyncServiceBrowser(self._mdns.zeroconf, SERVICE_TYPE, handlers=[self._on_event])
            self._watcher = asyncio.create_task(self._watch(), name="mdi directory")
        except BaseException:
            await self._mdns.async_close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say goodbye, so that the others forget this node at once, and end every task."""
        tasks = [self._watcher, *self._resolving.values(), *([self._announcing] if self._announcing else [])]
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._browser.async_cancel()
                await self._mdns.async_close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def members(self) -> tuple[Member, ...]:
        """The nodes of this cluster that are known now, this one first if it advertises. At most MAX_MEMBERS."""
        return self._table.members()

    def strangers(self) -> tuple[Member, ...]:
        """The nodes here that hold another cluster key."""
        return self._table.strangers()

    def add(self, member: Member) -> None:
        """Add a node that was found another way: a static peer after `probe_certificate`."""
        self._notify(self._table.put(f"static {member.node_id}", member))

    async def wait_for(self, n: int, timeout_s: float) -> tuple[Member, ...]:
        """The members as soon as there are `n`, or those that are there after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while len(self.members()) < n:
                    await self._changed.wait()
        return self.members()

    async def wait_changed(self, timeout_s: float) -> bool:
        """Wait for the next change of members or strangers. Returns False if there was none within `timeout_s`.

        No change is missed by who reads `members()` and then calls this without an await between.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
                return True
        return False

    def _notify(self, changed: bool) -> None:
        if changed:
            self._changed.set()  # wakes all who wait now; who waits later waits for the next change
            self._changed = asyncio.Event()

    async def _announce(self, interfaces: Sequence[Interface]) -> None:
        """Announce this node on `interfaces`, or its new addresses if they changed."""
        me = self._advertise
        addresses = (me.only_at,) if me is not None and me.only_at else advertised_addresses(interfaces)
        if me is None or self._own_instance is None or not addresses or addresses == self._addresses:
            return
        first, self._addresses = not self._addresses, addresses
        own = Member(me.node_id, me.name, addresses, me.port, me.protocol, self._fingerprint, Source.SELF)
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            self._own_instance,
            port=me.port,
            properties={"id": me.node_id, "key": self._fingerprint, "v": str(me.protocol)},
            server=f"{me.node_id}.local.",  # not the host's name: several nodes of one host have several ports and lives
            parsed_addresses=list(addresses),
            host_ttl=self._ttl_s,
            other_ttl=self._ttl_s,
        )
        # The name holds the hash of a key: probing for a conflict would cost 0.7 s and let anybody forbid a node to start.
        if self._announcing is not None:
            self._announcing.cancel()  # it would repeat the old addresses
        mdns = self._mdns
        sending = await (
            mdns.async_register_service(info, cooperating_responders=True) if first else mdns.async_update_service(info)
        )
        self._announcing = asyncio.ensure_future(sending)
        self._notify(self._table.put(self._own_instance, own))

    def _on_event(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if name == self._own_instance:
            return
        if state_change is ServiceStateChange.Removed:
            self._instances.discard(name)
            self._notify(self._table.remove(name))
        elif name in self._instances or len(self._instances) < MAX_INSTANCES:
            self._instances.add(name)
            self._look_up(name)

    def _look_up(self, instance: str) -> None:
        """Take a node's records from the cache, else ask for them."""
        info = AsyncServiceInfo(SERVICE_TYPE, instance)
        if info.load_from_cache(self._mdns.zeroconf):
            self._accept(info)
        elif instance not in self._resolving and len(self._resolving) < MAX_RESOLVING:
            task = asyncio.create_task(self._resolve(info), name=f"resolve {instance}")
            self._resolving[instance] = task
            task.add_done_callback(lambda _: self._resolving.pop(instance, None))

    async def _resolve(self, info: AsyncServiceInfo) -> None:
        if await info.async_request(self._mdns.zeroconf, RESOLVE_TIMEOUT_S * 1000):
            if info.name in self._instances:
                self._accept(info)
        else:
            self._notify(self._table.remove(info.name))

    def _accept(self, info: AsyncServiceInfo) -> None:
        try:
            member = read_member(info)
        except PeerError as error:
            _log.debug("ignored %r: %s", info.name, error)
            self._notify(self._table.remove(info.name))
        else:
            self._notify(self._table.put(info.name, member))

    async def _watch(self) -> None:
        """Follow the interfaces (a cable, another network, an address lease) and forget nodes that fell silent."""
        while True:
            await asyncio.sleep(self._check_interval_s)
            try:
                chosen = choose_interfaces(read_interfaces(), self._only)
                # Called even when nothing changed: an address that was still tentative is tried again.
                await self._mdns.async_update_interfaces(multicast_sockets(chosen), ip_version=IPVersion.All)
                await self._announce(chosen)
            except (OSError, RuntimeError, UserError) as error:  # an interface vanished while it was looked at
                _log.debug("interfaces are changing: %s", error)
            for instance in tuple(self._instances):
                self._look_up(instance)


def read_member(info: AsyncServiceInfo) -> Member:
    """The node that a resolved service describes. Raises PeerError if it is not that of an MDI node."""
    properties = info.decoded_properties
    node_id, fingerprint, protocol = (properties.get(field) or "" for field in ("id", "key", "v"))
    name, _, start_of_id = info.name.removesuffix(f".{SERVICE_TYPE}").rpartition(" ")
    if not start_of_id or not node_id.startswith(start_of_id):
        raise PeerError(f"the instance name is not that of node {node_id[:80]!r}")
    if not (protocol.isascii() and protocol.isdigit() and len(protocol) <= 5):
        raise PeerError(f"{protocol[:80]!r} is not a protocol version")
    addresses = [a for a in info.parsed_scoped_addresses() if _can_be_dialled(a)]
    addresses.sort(key=lambda a: (":" in a, "%" in a, a))
    return Member(node_id, name, tuple(addresses[:MAX_ADDRESSES]), info.port or 0, int(protocol), fingerprint, Source.MDNS)


def _can_be_dialled(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    needs_scope = ip.version == 6 and ip.is_link_local and "%" not in address
    return not (needs_scope or ip.is_multicast or ip.is_unspecified)
