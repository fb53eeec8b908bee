from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mdi.cluster.home import Home
from mdi.cluster.interfaces import read_interfaces


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


@pytest.fixture
async def no_leaks() -> AsyncIterator[None]:
    """Fails a test that leaves a task or a thread behind."""
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    yield
    await asyncio.sleep(0)  # lets the callbacks of closed transports run
    assert asyncio.all_tasks() - tasks - {asyncio.current_task()} == set()
    started = [t for t in threading.enumerate() if t not in threads]
    for thread in started:
        if thread.name.startswith("asyncio-waitpid"):  # it ends by itself after its child process did
            thread.join(5)
    pool = "asyncio_"  # the loop's own threads stay
    assert [t for t in started if t.is_alive() and not t.name.startswith(pool)] == []


@pytest.fixture(scope="session")
def loopback() -> str:
    """The name of the loopback interface, on which multicast works; the tests send nothing anywhere else."""
    names = [i.name for i in read_interfaces() if i.is_loopback and "127.0.0.1" in i.addresses]
    if not names:
        pytest.skip("no loopback interface with 127.0.0.1")
    group, here = socket.inet_aton("224.0.0.251"), socket.inet_aton("127.0.0.1")
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("", 0))
            receiver.settimeout(2)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + here)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
            sender.sendto(b"mdi", ("224.0.0.251", receiver.getsockname()[1]))
            receiver.recv(16)
    except OSError as error:
        pytest.skip(f"multicast does not work on loopback here: {error}")
    return names[0]
