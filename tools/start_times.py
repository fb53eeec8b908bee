"""python -m tools.start_times: how long `mdi --help` takes, how soon a node is announced, and what an idle node holds in memory.

The node is found as another device would find it, by mDNS. In a network of its own:
`sudo unshare --net sh -c 'ip link set lo up && .venv/bin/python -m tools.start_times'`
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from mdi.cluster.discovery import Directory
from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.errors import ClusterError

MDI = (sys.executable, "-m", "mdi.cli.app")
RUNS = 5
FOUND_TIMEOUT_S = 60.0
IDLE_S = 3.0  # announcements are repeated for two seconds
HELP_TARGET_S = 0.3
FOUND_TARGET_S = 2.0
RESIDENT_TARGET_BYTES = 90 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """`resident_bytes` count pages of files too, which processes share; `unique_bytes` would be free without this process."""

    ready_s: float
    found_s: float
    resident_bytes: int
    unique_bytes: int


def help_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([*MDI, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


async def start_node() -> Node:
    """From a process that is started until another process hears of it. Raises ClusterError if that takes too long."""
    with tempfile.TemporaryDirectory(prefix="mdi-start-") as directory:
        home, key = Home(Path(directory)).create(), ClusterKey.generate()
        key.save(home)
        async with Directory(key.fingerprint) as listener:
            began = time.perf_counter()
            process = await asyncio.create_subprocess_exec(
                *MDI, "node", "start", stdout=asyncio.subprocess.PIPE, env=os.environ | {"MDI_HOME": str(home.path)}
            )
            try:
                found_s, ready_s = await asyncio.gather(_found(listener, began), _ready(process, began))
                await asyncio.sleep(IDLE_S)
                memory = psutil.Process(process.pid).memory_full_info()
            finally:
                process.terminate()
                await process.wait()
    return Node(ready_s, found_s, memory.rss, memory.uss)


async def _found(listener: Directory, began: float) -> float:
    if not await listener.wait_for(1, FOUND_TIMEOUT_S):
        raise ClusterError(f"nobody heard of the node within {FOUND_TIMEOUT_S:g} s", hint="does this network have multicast?")
    return time.perf_counter() - began


async def _ready(process: asyncio.subprocess.Process, began: float) -> float:
    assert process.stdout is not None
    async with asyncio.timeout(FOUND_TIMEOUT_S):
        if not await process.stdout.readline():
            raise ClusterError("the node ended before it was ready")
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.start_times", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="the median of so many is told")
    runs = max(1, parser.parse_args().runs)
    help_s = median(help_seconds() for _ in range(runs))
    nodes = [asyncio.run(start_node()) for _ in range(runs)]
    found_s, ready_s = median(node.found_s for node in nodes), median(node.ready_s for node in nodes)
    resident, unique = median(node.resident_bytes for node in nodes), median(node.unique_bytes for node in nodes)
    print(f"mdi --help                  {help_s:6.2f} s    (at most {HELP_TARGET_S:g})")
    print(f"a node says that it serves  {ready_s:6.2f} s")
    print(f"another one has found it    {found_s:6.2f} s    (at most {FOUND_TARGET_S:g})")
    print(f"an idle node is resident    {resident / 2**20:6.1f} MiB  (at most {RESIDENT_TARGET_BYTES >> 20})")
    print(f"of that, its own            {unique / 2**20:6.1f} MiB")
    within = help_s <= HELP_TARGET_S and found_s <= FOUND_TARGET_S and resident <= RESIDENT_TARGET_BYTES
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
