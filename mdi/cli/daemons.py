"""Several nodes on this machine, for `mdi demo`: real daemons in processes of their own, with homes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mdi.cluster.home import Home, RunningNode
from mdi.errors import ClusterError

READY_TIMEOUT_S = 60.0  # imports and a key pair: 2 s on a laptop, a good 15 s from a Pi's card
STOP_TIMEOUT_S = 10.0  # a node drains its calls for 2 s
LOG_LINES = 200  # kept of each child, to show when it fails


@dataclass(frozen=True, slots=True)
class Daemon:
    """One running child. `node` is what it published about itself."""

    home: Home
    node: RunningNode

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.node.port}"


@asynccontextmanager
async def cluster(directory: Path, names: Sequence[str], arguments: Sequence[str] = ()) -> AsyncIterator[list[Daemon]]:
    """A node for each name, with its home under `directory`; the first makes the key, the others get its key file.

    All have ended when the context is left, however that is. Raises ClusterError with the log of a child that does not start.
    """
    async with AsyncExitStack() as stack:
        first = Home(directory / names[0]).create()
        daemons = [await stack.enter_async_context(_daemon(first, names[0], arguments, {}))]
        joined = {"MDI_CLUSTER_KEY_FILE": str(first.key_path)}
        homes = {name: Home(directory / name, first.key_path).create() for name in names[1:]}
        for name, home in homes.items():
            daemons.append(await stack.enter_async_context(_daemon(home, name, arguments, joined)))
        yield daemons


@asynccontextmanager
async def _daemon(home: Home, name: str, arguments: Sequence[str], extra: Mapping[str, str]) -> AsyncIterator[Daemon]:
    environment = {key: value for key, value in os.environ.items() if key != "MDI_CLUSTER_KEY_FILE"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mdi.cli.app", "node", "start", "--name", name, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**environment, "MDI_HOME": str(home.path), **extra},
        start_new_session=True,  # Ctrl-C at the terminal is for the conversation, not for the nodes
    )
    log: deque[str] = deque(maxlen=LOG_LINES)
    ready = asyncio.Event()
    reading = asyncio.create_task(_follow(process, log, home, ready), name=f"log of {name}")
    try:
        yield Daemon(home, await _started(name, home, log, ready))
    finally:
        try:
            await _end(process)
        finally:
            await reading  # ends with the child's stdout


async def _follow(process: asyncio.subprocess.Process, log: deque[str], home: Home, ready: asyncio.Event) -> None:
    """Keeps the child's pipe empty. `ready` is set when it has published itself, or has ended."""
    assert process.stdout is not None
    async for line in process.stdout:
        log.append(line.decode(errors="replace").rstrip())
        if not ready.is_set() and home.running() is not None:
            ready.set()
    ready.set()


async def _started(name: str, home: Home, log: deque[str], ready: asyncio.Event) -> RunningNode:
    with suppress(TimeoutError):
        async with asyncio.timeout(READY_TIMEOUT_S):
            await ready.wait()
    node = home.running()
    if node is None:
        shown = "\n".join(f"  {line}" for line in log) or "  (it printed nothing)"
        raise ClusterError(f"node {name} did not start; it printed:\n{shown}")
    return node


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL for one that does not listen, or when this is cancelled: nobody waits any more."""
    try:
        with suppress(ProcessLookupError, TimeoutError):
            process.terminate()
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    await process.wait()
