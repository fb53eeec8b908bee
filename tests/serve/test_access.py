from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from mdi.errors import UserError
from mdi.serve.access import Access, new_key
from mdi.serve.errors import ApiError

KEY = "a-key-that-is-long-enough"


def of(
    host: str = "127.0.0.1", keys: tuple[str, ...] = (), names: tuple[str, ...] = (), origins: tuple[str, ...] = ()
) -> Access:
    return Access.of(host, keys, names, origins)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5", "nas.lan"]
)
def test_own_names_and_addresses_are_hosts(host: str) -> None:
    of(names=("NAS.lan",)).check_source(Headers({"host": host}))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "", "[::1", "a b", "127.0.0.1.evil.example", "user@localhost@evil.example"],
)
def test_other_names_are_refused(host: str) -> None:
    with pytest.raises(ApiError, match="not called") as refused:
        of().check_source(Headers({"host": host}))
    assert refused.value.status == 403


def test_a_missing_or_a_second_host_is_refused() -> None:
    for raw in ([], [(b"host", b"localhost"), (b"host", b"localhost")]):
        with pytest.raises(ApiError):
            of().check_source(Headers(raw=raw))


def test_on_the_network_the_devices_own_name_is_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Attic")
    for host in ("attic:8000", "attic.local"):
        of("0.0.0.0").check_source(Headers({"host": host}))
        with pytest.raises(ApiError):
            of("127.0.0.1").check_source(Headers({"host": host}))


def test_pages_may_ask_only_from_the_servers_own_origin_or_an_allowed_one() -> None:
    access = of(origins=("https://chat.example",))
    for origin in ("http://localhost:8000", "https://chat.example"):
        access.check_source(Headers({"host": "localhost:8000", "origin": origin}))
    for origin in ("null", "http://localhost:3000", "https://localhost:8000", "https://evil.example", ""):
        with pytest.raises(ApiError, match="pages of"):
            access.check_source(Headers({"host": "localhost:8000", "origin": origin}))


def test_a_key_is_asked_for_everywhere_but_at_health() -> None:
    access = of(keys=(KEY, "another-key-of-a-friend"))
    names = {
        access.check_key(Headers(headers), "/v1/models") for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY})
    }
    assert len(names) == 1
    assert not any(KEY in (name or "") for name in names)
    friend = access.check_key(Headers({"authorization": "bearer another-key-of-a-friend"}), "/metrics")
    assert friend not in names
    for headers in ({}, {"authorization": f"Basic {KEY}"}, {"authorization": f"Bearer {KEY}x"}, {"x-api-key": "ключ"}):
        with pytest.raises(ApiError, match="API key") as refused:
            access.check_key(Headers(raw=[(name.encode(), value.encode()) for name, value in headers.items()]), "/metrics")
        assert refused.value.status == 401
    assert access.check_key(Headers({}), "/health") is None
    assert not access.knows(Headers({}))
    assert access.knows(Headers({"x-api-key": KEY}))


def test_keys_that_could_be_guessed_are_refused() -> None:
    for key in ("short", "with a space in it ....", "schlüssel-mit-umlaut-xx"):
        with pytest.raises(UserError, match="API key"):
            Access((key,))
    assert KEY not in repr(Access((KEY,)))
    assert new_key() != new_key()


def test_an_origin_is_a_scheme_and_a_host() -> None:
    for origin in ("chat.example", "https://chat.example/path", "*", "ftp://x"):
        with pytest.raises(UserError, match="origin"):
            of(origins=(origin,))
