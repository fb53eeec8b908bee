from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.cluster.peers import DEFAULT_PORT, PeerAddress, parse_peer
from mdi.errors import UserError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("pi4", "pi4", DEFAULT_PORT),
        ("pi-4.local:1", "pi-4.local", 1),
        (" 10.0.0.7:65535 ", "10.0.0.7", 65535),
        ("fd00::2", "fd00::2", DEFAULT_PORT),
        ("[fd00::2]", "fd00::2", DEFAULT_PORT),
        ("[fe80::1%eth0]:8000", "fe80::1%eth0", 8000),
    ],
)
def test_forms_of_an_address(text: str, host: str, port: int) -> None:
    assert parse_peer(text) == PeerAddress(host, port)
    assert parse_peer(str(parse_peer(text))) == PeerAddress(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":80",
        "pi:",
        "pi:0",
        "pi:65536",
        "pi:-1",
        "pi:+1",
        "pi:²",
        "p i",
        "pi/x",
        "http://pi",
        "-pi",
        "a..b",
        "999.1.1.1",
        "10.0.0",
        "[::1",
        "[::1]80",
        "[pi]:80",
        "::1]:80",
        "a" * 64,
        "a." * 127 + "a",
        "user@pi",
        "pi\n80",
        "1:2:3",
        "fe80::1::2",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_peer(text)
    assert str(DEFAULT_PORT) in str(refused.value.hint)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40) | st.from_regex(r"[\[\]:.%0-9a-z]{0,20}", fullmatch=True))
def test_any_text_is_an_address_or_a_user_error(text: str) -> None:
    try:
        peer = parse_peer(text)
    except UserError:
        return
    assert parse_peer(str(peer)) == peer
