"""Who may ask at all: API keys, and Host and Origin checks, without which any web page could talk to a server on its reader's device.

DNS rebinding lets a page's own host name point to this device: the browser then takes the page and this server for one origin, so only
the Host header tells. A header that is an address was not made by a name, and names are accepted only when they are known to be ours.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from mdi.errors import UserError
from mdi.serve.errors import ApiError

KEY_BYTES = 24
MIN_KEY_CHARS = 16  # shorter ones can be guessed over a network
OPEN_PATHS = frozenset(("/health",))  # told to anybody, without details


def new_key() -> str:
    return f"mdi-{secrets.token_urlsafe(KEY_BYTES)}"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Access:
    """`keys` empty: whoever reaches the port may ask. `names`: host names that mean this server; `origins`: whose pages may ask."""

    keys: tuple[str, ...] = field(default=(), repr=False)
    names: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for key in self.keys:
            if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
                raise UserError(
                    f"an API key needs at least {MIN_KEY_CHARS} characters, no space, and ASCII only",
                    hint="leave it out, and one is made and printed",
                )
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https", "app", "tauri") or not parts.netloc or parts.path:
                raise UserError(f"--allow-origin {origin!r} is no origin", hint="write it like https://chat.example:8443")

    @classmethod
    def of(cls, host: str, keys: tuple[str, ...], names: Iterable[str], origins: Iterable[str]) -> Access:
        """For a server that listens at `host`."""
        own = {"localhost", *(name.lower() for name in names)}
        if not is_loopback(host):
            name = socket.gethostname().lower()
            own |= {name, f"{name.partition('.')[0]}.local"}  # a name on .local comes from mDNS, so from this network
        return cls(keys, frozenset(own), frozenset(origins))

    def check_source(self, headers: Headers) -> None:
        """Raises ApiError (403) for a Host that is not ours, and for an Origin that may not ask."""
        self._check_host(headers)
        self._check_origin(headers)

    def check_key(self, headers: Headers, path: str) -> str | None:
        """The name of the key that was used, None where none is needed. Raises ApiError (401)."""
        return None if not self.keys or path in OPEN_PATHS else self._checked_key(headers)

    def knows(self, headers: Headers) -> bool:
        """Whether details may be told to this caller on a path that is open to all."""
        try:
            return not self.keys or self._checked_key(headers) is not None
        except ApiError:
            return False

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) == 1:
            host = _name(hosts[0])
            if host in self.names or _is_address(host):
                return
        shown = ", ".join(hosts)[:80]
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            f"this server is not called {shown!r}; start it with --allow-host to give it that name",
            code="wrong_host",
        )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or origin in self.origins or origin == f"http://{headers['host']}":
            return
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            f"pages of {origin[:80]!r} may not use this server; start it with --allow-origin to allow that",
            code="wrong_origin",
        )

    def cross_origin(self, headers: Headers) -> list[tuple[str, str]]:
        """Headers that let a page of an allowed origin read the reply."""
        origin = headers.get("origin")
        return [("access-control-allow-origin", origin), ("vary", "origin")] if origin in self.origins and origin else []

    def preflight(self, headers: Headers) -> list[tuple[str, str]]:
        """The answer to a browser that asks for a page of an allowed origin what it may send, beside `cross_origin`."""
        asked = headers.get("access-control-request-headers", "")
        return [
            ("access-control-allow-methods", "GET, POST"),
            (
                "access-control-allow-headers",
                asked if asked.isascii() and asked.isprintable() else "authorization, content-type",
            ),
            ("access-control-max-age", "600"),
        ]

    def _checked_key(self, headers: Headers) -> str:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        found = [key for key in self.keys if hmac.compare_digest(key.encode(), given.encode("utf-8", "replace"))]
        if not found:
            raise ApiError(
                HTTPStatus.UNAUTHORIZED,
                "the API key is missing" if not given else "the API key is wrong",
                code="invalid_api_key",
                headers=(("www-authenticate", "Bearer"),),
            )
        return hashlib.sha256(found[0].encode()).hexdigest()[:8]  # the log must not hold the key


def _name(host: str) -> str:
    """The header's name or address without the port; empty for what is neither."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
