"""Which of this device's network interfaces and addresses others can reach."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

from mdi.errors import UserError

# Interfaces of containers and virtual machines: other devices cannot reach what is behind them.
VIRTUAL_PREFIXES = (
    "docker",
    "br-",
    "veth",
    "virbr",
    "vnet",
    "vboxnet",
    "vmnet",
    "lxc",
    "lxdbr",
    "podman",
    "cni",
    "flannel",
    "cali",
)
MAX_ADDRESSES = 8  # per node: more would not fit one mDNS packet beside the rest, and each costs a dialler a timeout


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface that is up. `addresses` are IPv4 and IPv6, link-local ones without `%scope`."""

    name: str
    addresses: tuple[str, ...]
    is_loopback: bool = False
    is_point_to_point: bool = False  # VPNs: no multicast, and no use to whoever is not in the VPN: these take static peers

    @property
    def is_virtual(self) -> bool:
        return self.name.startswith(VIRTUAL_PREFIXES)


def read_interfaces() -> tuple[Interface, ...]:
    """The interfaces that are up and have an IP address."""
    status = psutil.net_if_stats()
    interfaces = []
    for name, entries in psutil.net_if_addrs().items():
        addresses = [e.address.partition("%")[0] for e in entries if e.family in (socket.AF_INET, socket.AF_INET6)]
        if addresses and name in status and status[name].isup:
            flags = status[name].flags.split(",")
            interfaces.append(Interface(name, tuple(addresses), "loopback" in flags, "pointopoint" in flags))
    return tuple(interfaces)


def choose_interfaces(interfaces: Iterable[Interface], only: Sequence[str] = ()) -> tuple[Interface, ...]:
    """The interfaces to be found on: those named in `only` (by name or address), else the best kind that exists.

    Real networks come first; without any, virtual ones (a container's own veth); without any, loopback, on which the nodes of
    one device still find each other. Raises UserError if `only` names what is not here.
    """
    interfaces = tuple(interfaces)
    if only:
        chosen = tuple(i for i in interfaces if i.name in only or set(i.addresses) & set(only))
        if not chosen:
            names = ", ".join(i.name for i in interfaces) or "none"
            raise UserError(
                f"no network interface {', '.join(only)!r} is up on this device", hint=f"those that are up: {names}"
            )
        return chosen
    shared = [i for i in interfaces if not i.is_loopback and not i.is_point_to_point]
    real = tuple(i for i in shared if not i.is_virtual)
    return real or tuple(shared) or tuple(i for i in interfaces if i.is_loopback)


def advertised_addresses(interfaces: Iterable[Interface]) -> tuple[str, ...]:
    """Where others may dial: IPv4, then IPv6; IPv6 link-local, which needs a scope, only if there is nothing else."""
    addresses = list(dict.fromkeys(a for i in interfaces for a in i.addresses))
    ipv4 = [a for a in addresses if ":" not in a]
    ipv6 = [a for a in addresses if ":" in a and not ipaddress.ip_address(a).is_link_local]
    return tuple((ipv4 + ipv6 or addresses)[:MAX_ADDRESSES])


def multicast_sockets(interfaces: Iterable[Interface]) -> list[str | int]:
    """One IPv4 address and one IPv6 index for each interface, in the form that zeroconf takes.

    Not more: a second membership of the same interface is refused. Loopback gets IPv4 only: IPv6 multicast does not work there.
    """
    sockets: list[str | int] = []
    for interface in interfaces:
        sockets += [a for a in interface.addresses if ":" not in a][:1]
        if not interface.is_loopback and any(":" in a for a in interface.addresses):
            sockets.append(socket.if_nametoindex(interface.name))
    return sockets
