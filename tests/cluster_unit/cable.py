"""Run in a network namespace of its own: three nodes stay together while their only network comes and goes.

`cable.py eth0` starts with the cable plugged, `cable.py lo` without; each "together" is printed when all three know of each
other at the addresses of the network that is there.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack

from mdi.cluster.discovery import Advertisement, Directory

NAMES = "abc"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=10)


def plug(plugged: bool) -> str:
    """Returns the address at which the nodes can be reached then."""
    ip("link", "set", "eth0", "up" if plugged else "down")
    return "10.77.0.1" if plugged else "127.0.0.1"


async def together(directories: list[Directory], address: str) -> None:
    for directory in directories:
        async with asyncio.timeout(15):
            while not all_at(directory, address):
                await directory.wait_changed(15)
    print("together", flush=True)


def all_at(directory: Directory, address: str) -> bool:
    members = directory.members()
    return sorted(m.name for m in members) == list(NAMES) and all(address in m.addresses for m in members)


async def main(plugged: bool) -> None:
    ip("link", "set", "lo", "up")
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "veth-far")
    ip("link", "set", "veth-far", "up")
    ip("address", "add", "10.77.0.1/24", "dev", "eth0")
    address = plug(plugged)
    async with AsyncExitStack() as stack:
        directories = []
        for n, name in enumerate(NAMES, 1):
            node = Advertisement(f"{n:x}" * 32, name, 52700 + n, protocol=1)
            directory = Directory("0123abcd", advertise=node, check_interval_s=0.2)
            directories.append(await stack.enter_async_context(directory))
        await together(directories, address)
        await together(directories, plug(not plugged))
        await together(directories, plug(plugged))


asyncio.run(main(sys.argv[1] == "eth0"))
