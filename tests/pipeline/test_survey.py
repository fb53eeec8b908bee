"""Looking for nodes leaves nothing behind: no cluster that nobody founded, no task that nobody owns."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.cluster.members import Member, Source
from mdi.errors import UserError
from mdi.pipeline.survey import list_nodes, open_house, with_address


async def test_looking_around_founds_no_cluster(tmp_path: Path) -> None:
    """The first `mdi node start` does, and prints the key; a device that only looked can still join another."""
    home = Home(tmp_path / "home").create()
    found = await list_nodes(home, (), discovery=False, wait_s=0.0)
    assert found.rows == ()
    assert not home.key_path.exists()
    ClusterKey.generate().save(home)


async def test_a_key_file_that_is_named_must_exist(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "elsewhere.key").create()
    with pytest.raises(UserError, match=r"elsewhere\.key"):
        await list_nodes(home, (), discovery=False, wait_s=0.0)


async def test_a_search_that_is_given_up_leaves_no_task(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = f"127.0.0.1:{silent.getsockname()[1]}"
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), open_house(Home(tmp_path).create(), (peer,), discovery=True, wait_s=60.0):
                raise AssertionError("nobody is here")
        assert {task.get_name() for task in asyncio.all_tasks() - before} == set()


def member(source: Source, *addresses: str, port: int = 52700) -> Member:
    name = addresses[0] if source is Source.STATIC else "attic"
    return Member("a" * 32, name, addresses, port, 1 if source is Source.MDNS else None, "0" * 8, source)


def test_an_address_that_was_named_and_proved_goes_before_those_that_were_heard() -> None:
    """The one that was heard may be unreachable from here, and the one that was named from elsewhere."""
    heard = member(Source.MDNS, "172.17.0.2", "192.168.1.7")
    both = with_address(heard, member(Source.STATIC, "192.168.1.7"))
    assert (both.name, both.addresses, both.protocol) == ("attic", ("192.168.1.7", "172.17.0.2"), 1)
    again = with_address(both, member(Source.STATIC, "attic.lan"))
    assert again.addresses == ("192.168.1.7", "172.17.0.2", "attic.lan")


def test_an_address_behind_another_port_replaces_those_that_were_heard() -> None:
    forwarded = with_address(member(Source.MDNS, "10.0.0.2"), member(Source.STATIC, "example.org", port=4000))
    assert (forwarded.addresses, forwarded.port) == (("example.org",), 4000)


def test_this_device_stays_on_loopback() -> None:
    own = member(Source.SELF, "127.0.0.1")
    assert with_address(own, member(Source.STATIC, "192.168.1.7")) is own
