"""Directories find each other by real multicast DNS on loopback; each test has a cluster of its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from zeroconf import DNSOutgoing
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from mdi.cluster import discovery
from mdi.cluster.discovery import SERVICE_TYPE, Advertisement, Directory
from mdi.cluster.interfaces import Interface
from mdi.cluster.members import Member, Source
from mdi.errors import LinkError, UserError

pytestmark = pytest.mark.usefixtures("no_leaks")
FLAGS_RESPONSE = 0x8400  # RFC 6762 (18): a response, authoritative
FOUND_S = 10.0  # usually 0.2 s; the rest is for a busy machine


@pytest.fixture
def cluster() -> str:
    return secrets.token_hex(4)


def advertisement(name: str, port: int = 52700) -> Advertisement:
    return Advertisement(secrets.token_hex(16), name, port, protocol=1)


def ids(members: tuple[Member, ...]) -> set[str]:
    return {member.node_id for member in members}


async def until_gone(directory: Directory, node_id: str, timeout_s: float = FOUND_S) -> None:
    async with asyncio.timeout(timeout_s):
        while node_id in ids(directory.members()):
            await directory.wait_changed(timeout_s)


async def assert_stays(directory: Directory, node_id: str, for_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(for_s):
            while True:
                assert node_id in ids(directory.members())
                await directory.wait_changed(for_s)


async def test_three_nodes_of_one_host_and_a_starter_find_each_other(loopback: str, cluster: str) -> None:
    nodes = [advertisement(f"node-{i}", port=52700 + i) for i in range(3)]
    async with AsyncExitStack() as stack:
        directories = [
            await stack.enter_async_context(Directory(cluster, advertise=node, interfaces=[loopback])) for node in nodes
        ]
        starter = await stack.enter_async_context(Directory(cluster, interfaces=[loopback]))
        for directory in [*directories, starter]:
            members = await directory.wait_for(3, FOUND_S)
            assert {(m.node_id, m.name, m.port, m.protocol, m.fingerprint) for m in members} == {
                (n.node_id, n.name, n.port, 1, cluster) for n in nodes
            }
            assert all("127.0.0.1" in m.addresses for m in members)
        assert [m.source for m in directories[0].members()] == [Source.SELF, Source.MDNS, Source.MDNS]
        assert directories[0].members()[0].node_id == nodes[0].node_id
        assert [m.source for m in starter.members()] == [Source.MDNS] * 3


async def test_a_node_that_listens_on_one_address_announces_no_other(loopback: str, cluster: str) -> None:
    """127.0.0.2 is none that the interface has: what the interface has would be announced otherwise."""
    node = Advertisement(secrets.token_hex(16), "here-only", 52700, protocol=1, only_at="127.0.0.2")
    async with (
        Directory(cluster, interfaces=[loopback]) as watching,
        Directory(cluster, advertise=node, interfaces=[loopback]) as own,
    ):
        for directory in (own, watching):
            (member,) = await directory.wait_for(1, FOUND_S)
            assert member.addresses == ("127.0.0.2",)


async def test_a_goodbye_is_noticed_at_once(loopback: str, cluster: str) -> None:
    node = advertisement("leaves")
    async with Directory(cluster, interfaces=[loopback]) as watching:
        async with Directory(cluster, advertise=node, interfaces=[loopback]):
            assert ids(await watching.wait_for(1, FOUND_S)) == {node.node_id}
        await until_gone(watching, node.node_id, timeout_s=3)
        assert watching.members() == ()


async def test_a_node_that_comes_back_on_another_port_is_updated(loopback: str, cluster: str) -> None:
    first = advertisement("returns", port=1001)
    async with Directory(cluster, interfaces=[loopback]) as watching:
        for port in (1001, 1002):
            node = Advertisement(first.node_id, first.name, port, 1)
            async with Directory(cluster, advertise=node, interfaces=[loopback]), asyncio.timeout(FOUND_S):
                while [m.port for m in watching.members()] != [port]:
                    await watching.wait_changed(FOUND_S)


async def test_the_nodes_of_another_cluster_are_kept_apart(loopback: str, cluster: str) -> None:
    ours, theirs = advertisement("ours"), advertisement("theirs")
    async with (
        Directory(cluster, advertise=ours, interfaces=[loopback]) as directory,
        Directory(secrets.token_hex(4), advertise=theirs, interfaces=[loopback]) as other,
        asyncio.timeout(FOUND_S),
    ):
        while theirs.node_id not in ids(directory.strangers()) or ours.node_id not in ids(other.strangers()):
            await directory.wait_changed(0.5)
        assert ids(directory.members()) == {ours.node_id}
        assert ids(other.members()) == {theirs.node_id}


async def test_wait_for_ends_at_its_deadline_with_what_is_there(loopback: str, cluster: str) -> None:
    node = advertisement("alone")
    async with Directory(cluster, advertise=node, interfaces=[loopback]) as directory:
        assert ids(await directory.wait_for(2, 0.1)) == {node.node_id}


async def test_a_static_peer_is_a_member(loopback: str, cluster: str) -> None:
    static = Member(secrets.token_hex(16), "pi.example.org", ("pi.example.org",), 52700, None, cluster, Source.STATIC)
    async with Directory(cluster, interfaces=[loopback]) as directory:
        waiting = asyncio.create_task(directory.wait_for(1, FOUND_S))
        await asyncio.sleep(0)
        directory.add(static)
        assert await waiting == (static,)


@pytest.mark.parametrize(
    "lie",
    [
        {"id": ""},
        {"id": "0" * 32},
        {"key": "not hex!"},
        {"v": "1e3"},
        {"v": "\N{SUPERSCRIPT TWO}"},
        {"v": b"\xff\xfe"},
        {"v": None},
    ],
)
async def test_malformed_announcements_are_ignored(
    loopback: str, cluster: str, lie: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "mdi.cluster.discovery")
    liar, honest = advertisement("liar"), advertisement("honest")
    service = AsyncServiceInfo(
        SERVICE_TYPE,
        f"liar {liar.node_id[:12]}.{SERVICE_TYPE}",
        port=1,
        properties={"id": liar.node_id, "key": cluster, "v": "1"} | lie,
        server=f"{liar.node_id}.local.",
        parsed_addresses=["127.0.0.1"],
    )
    async with Directory(cluster, interfaces=[loopback]) as directory:
        mdns = AsyncZeroconf(interfaces=["127.0.0.1"])
        try:
            await (await mdns.async_register_service(service, cooperating_responders=True))
            async with Directory(cluster, advertise=honest, interfaces=[loopback]):
                assert ids(await directory.wait_for(1, FOUND_S)) == {honest.node_id}
            assert any(service.name in record.getMessage() for record in caplog.records)
        finally:
            await mdns.async_close()


async def test_new_addresses_of_this_device_are_announced(loopback: str, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = advertisement("moves")
    options = {"interfaces": [loopback], "check_interval_s": 0.05}
    async with (
        Directory(cluster, interfaces=[loopback]) as watching,
        Directory(cluster, advertise=node, **options) as moving,  # type: ignore[arg-type]
    ):
        await watching.wait_for(1, FOUND_S)
        for lease in ("10.1.2.3", "10.1.2.4"):  # as if the interface had got a lease, and then another
            now = Interface(loopback, ("127.0.0.1", lease), is_loopback=True)
            monkeypatch.setattr(discovery, "read_interfaces", lambda now=now: (now,))
            for directory in (watching, moving):
                async with asyncio.timeout(FOUND_S):
                    while lease not in directory.members()[0].addresses:
                        await directory.wait_changed(FOUND_S)
            assert moving.members()[0].addresses == ("127.0.0.1", lease)  # others keep the old one beside it for RECORD_TTL_S
        monkeypatch.setattr(discovery, "read_interfaces", lambda: ())  # no network for a moment: nothing ends
        await assert_stays(watching, node.node_id, for_s=0.2)
        await assert_stays(moving, node.node_id, for_s=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are of Linux")
@pytest.mark.parametrize("start", ["eth0", "lo"])
async def test_one_host_with_a_network_and_when_it_comes_and_goes(start: str) -> None:
    """Three nodes in a network namespace of their own, with a real cable that is plugged and pulled."""
    script = Path(__file__).with_name("cable.py")
    running = await asyncio.create_subprocess_exec(
        *("unshare", "--net", sys.executable, script, start),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]},
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await running.communicate()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    text = output.decode()
    if "not permitted" in text:
        pytest.skip(f"no network namespaces here: {text.splitlines()[-1]}")
    assert text == "together\ntogether\ntogether\n"


async def test_a_name_without_a_node_is_asked_for_and_left_at_the_end(loopback: str, cluster: str) -> None:
    instance = f"ghost {secrets.token_hex(6)}.{SERVICE_TYPE}"
    ghost = AsyncServiceInfo(SERVICE_TYPE, instance, port=1, server="ghost.local.", properties={})
    mdns = AsyncZeroconf(interfaces=["127.0.0.1"])
    try:
        await mdns.zeroconf.async_wait_for_start()
        async with Directory(cluster, interfaces=[loopback]) as directory, asyncio.timeout(FOUND_S):
            packet = DNSOutgoing(FLAGS_RESPONSE)
            packet.add_answer_at_time(ghost.dns_pointer(), 0)  # a pointer, but neither port nor addresses
            while not any(task.get_name() == f"resolve {instance}" for task in asyncio.all_tasks()):
                mdns.zeroconf.async_send(packet)
                await directory.wait_changed(0.1)
            assert directory.members() == ()
    finally:
        await mdns.async_close()


async def test_what_cannot_work_is_said(cluster: str, loopback: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no network interface"):
        async with Directory(cluster, interfaces=["no-such-interface"]):
            pass

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(discovery, "AsyncZeroconf", refuse)
    with pytest.raises(LinkError, match="multicast DNS: Address already in use") as refused:
        async with Directory(cluster, interfaces=[loopback]):
            pass
    assert "--peer" in str(refused.value.hint)


@asynccontextmanager
async def process(
    interface: str, cluster: str, node: Advertisement, ttl_s: int = 120
) -> AsyncIterator[asyncio.subprocess.Process]:
    script = Path(__file__).with_name("advertise.py")
    arguments = [script, interface, node.node_id, cluster, node.name, str(node.port), str(ttl_s)]
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert running.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await running.stdout.readline() == b"ready\n"
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def test_two_processes_find_each_other_and_part(loopback: str, cluster: str) -> None:
    here, there = advertisement("here", 1), advertisement("there", 2)
    async with (
        Directory(cluster, advertise=here, interfaces=[loopback]) as directory,
        process(loopback, cluster, there) as other,
    ):
        assert ids(await directory.wait_for(2, FOUND_S)) == {here.node_id, there.node_id}
        async with asyncio.timeout(FOUND_S):
            await other.communicate(b"")  # closes its input: it ends and says goodbye
        assert other.returncode == 0
        await until_gone(directory, there.node_id)


async def test_a_killed_node_is_forgotten_when_its_records_expire(loopback: str, cluster: str) -> None:
    node = advertisement("killed")
    async with (
        Directory(cluster, interfaces=[loopback], check_interval_s=0.2) as directory,
        process(loopback, cluster, node, ttl_s=2) as other,
    ):
        await directory.wait_for(1, FOUND_S)
        await assert_stays(directory, node.node_id, for_s=2.5)  # it lives, and so answers when its records expire
        other.kill()
        await until_gone(directory, node.node_id, timeout_s=20)
