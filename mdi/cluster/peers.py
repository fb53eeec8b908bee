"""Addresses of peers that a person types."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from mdi.errors import UserError

DEFAULT_PORT = 52700

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")
_HINT = f"write HOST, HOST:PORT or [IPV6]:PORT; without a port it is {DEFAULT_PORT}"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer listens. `host` is a name or an IP address, without brackets; `str()` is a gRPC target."""

    host: str
    port: int = DEFAULT_PORT

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise UserError(f"{self.port} is not a port (1 to 65535)", hint=_HINT)
        if not (is_ip_address(self.host) or (_HOST.fullmatch(self.host) and not _looks_like_ipv4(self.host))):
            raise UserError(f"{self.host[:80]!r} is not a host name or an IP address", hint=_HINT)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_peer(text: str) -> PeerAddress:
    """Read "host", "host:port", "[v6]", "[v6]:port" or a bare IPv6 address. Raises UserError."""
    text = text.strip()
    if is_ip_address(text):
        return PeerAddress(text)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise UserError(f"{text[:80]!r} is not an address", hint=_HINT)
        return PeerAddress(host, _port(rest[1:]) if rest else DEFAULT_PORT)
    host, colon, port = text.rpartition(":")
    return PeerAddress(host, _port(port)) if colon else PeerAddress(text)


def is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise UserError(f"{text[:80]!r} is not a port (1 to 65535)", hint=_HINT)
    return int(text)


def _looks_like_ipv4(host: str) -> bool:
    return all(part.isdigit() for part in host.rstrip(".").split("."))
