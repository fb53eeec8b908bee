"""The daemon: brings up everything a node is, and takes it down again."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import psutil

from mdi.cluster.certificates import Authority
from mdi.cluster.discovery import Advertisement, Directory
from mdi.cluster.home import Home, RunningNode
from mdi.cluster.identity import Identity
from mdi.cluster.key import ClusterKey
from mdi.cluster.members import clean_name
from mdi.cluster.peers import DEFAULT_PORT, is_ip_address
from mdi.engine.backend import AUTO, Backend, choose_backend
from mdi.engine.protocol import check_threads
from mdi.engine.thread import EngineThread
from mdi.errors import ClusterError, LinkError, UserError
from mdi.node.control import ControlServicer, Me
from mdi.node.dial import Dialler
from mdi.node.links import exchange_handler
from mdi.node.measure import Measurer
from mdi.node.packs import PackStore
from mdi.node.ring import RingServicer
from mdi.node.stages import Stages
from mdi.profile.device import DeviceInfo
from mdi.profile.memory import give_back_freed_memory, keep_large_blocks_apart, offered_bytes
from mdi.wire import PROTOCOL
from mdi.wire.channel import new_server, server_credentials, target
from mdi.wire.mdi_pb2_grpc import add_NodeServicer_to_server
from mdi.wire.ring import handlers

PORTS_TRIED = 32  # from DEFAULT_PORT on, when no port was asked for: several nodes on one device are rare
DRAIN_S = 2.0  # calls in progress get this long at a stop; a step of a large model on a Pi takes about one
SWEEP_INTERVAL_S = 1.0
# The interpreter switches threads this often when one computes in Python: at the default 5 ms the event loop waits for the engine
# thread (facts: two conversations 68 tok/s, with this 84).
SWITCH_INTERVAL_S = 0.0002
ANY_HOSTS = ("::", "0.0.0.0")  # the first that the device can listen on; :: takes IPv4 as well

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """`port` None takes DEFAULT_PORT or the next free one; `join` is the text of a cluster key."""

    name: str | None = None
    host: str | None = None
    port: int | None = None
    max_memory_bytes: int | None = None
    threads: int | None = None
    device: str = AUTO
    peers: tuple[str, ...] = ()
    discovery: bool = True
    join: str | None = None

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise UserError(f"{self.port} is not a port", hint="choose one from 1 to 65535")
        check_threads(self.threads)


@dataclass(frozen=True, slots=True)
class NodeReady:
    """What the user is told once the node answers. `new_key` is set when this start made the cluster's key."""

    node_id: str
    name: str
    port: int
    fingerprint: str
    new_key: str | None


async def run_node(options: NodeOptions, home: Home, on_ready: Callable[[NodeReady], None]) -> None:
    """Serves until SIGTERM or SIGINT. Raises UserError for what was typed wrong, before anything listens."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with node(options, home) as ready:
            on_ready(ready)
            await stop.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def node(options: NodeOptions, home: Home) -> AsyncIterator[NodeReady]:
    """A running node; leaving the context drains and closes it."""
    keep_large_blocks_apart()
    async with AsyncExitStack() as stack:
        stack.enter_context(home.lock())
        backend = choose_backend(options.device)
        key, made = _cluster_key(options, home)
        authority = Authority.of(key)
        identity = Identity.load_or_create(home)
        credentials = authority.issue(identity)
        name = clean_name(options.name or socket.gethostname())
        device = DeviceInfo.of_this_device()
        threads = options.threads or device.usable_cores

        engine = stack.enter_context(EngineThread())
        packs = PackStore(home.packs_path)
        packs.clear_broken_off()
        stages = Stages(packs, lambda *held: _offered(options, backend, *held), time.monotonic, backend)
        stack.callback(stages.close)
        dialler = Dialler(credentials)
        me = Me(identity.node_id, name, device, threads, time.monotonic(), backend)
        ring = RingServicer(stages, engine, dialler)
        server = new_server([handlers(ring.on_flow, ring.on_collect), exchange_handler()])
        measurer = Measurer(home.profiles_path, engine, threads, backend)
        add_NodeServicer_to_server(ControlServicer(me, stages, packs, dialler, measurer), server)
        port = _listen(server, options, server_credentials(credentials))
        await server.start()
        stack.push_async_callback(server.stop, DRAIN_S)
        sweeper = asyncio.create_task(_sweep(stages), name="lease sweeper")
        stack.push_async_callback(_end, sweeper)

        only_at = options.host if options.host and options.host not in ANY_HOSTS and is_ip_address(options.host) else None
        advertisement = Advertisement(identity.node_id, name, port, PROTOCOL, only_at)
        await stack.enter_async_context(_announced(options, authority.fingerprint, advertisement))
        home.write_peers(options.peers)
        home.write_running(RunningNode(os.getpid(), port, name, identity.node_id, time.time()))
        stack.callback(home.clear_running)
        yield NodeReady(identity.node_id, name, port, authority.fingerprint, key.text if made else None)


def _offered(options: NodeOptions, backend: Backend, used: int, promised: int) -> int:
    return offered_bytes(options.max_memory_bytes, used, backend, promised=promised)


def stop_node(home: Home, timeout_s: float = 10.0) -> bool:
    """Ends the daemon of this home and waits for it. False when none runs. Raises ClusterError when it does not end in time."""
    running = home.running()
    if running is None:
        return False
    try:
        process = psutil.Process(running.pid)
        process.terminate()
        process.wait(timeout_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        raise ClusterError(f"the node did not end within {timeout_s:g} s", hint=f"kill -9 {running.pid}") from None
    return True


def _cluster_key(options: NodeOptions, home: Home) -> tuple[ClusterKey, bool]:
    if options.join is None:
        return ClusterKey.load_or_create(home)
    key = ClusterKey.parse(options.join)
    key.save(home)
    return key, False


def _listen(server: grpc.aio.Server, options: NodeOptions, credentials: grpc.ServerCredentials) -> int:
    """The port that was taken. Raises UserError when the one that was asked for is not free."""
    hosts = (options.host,) if options.host else ANY_HOSTS
    wanted = [options.port] if options.port else range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED)
    for port in wanted:
        for host in hosts:
            try:
                return int(server.add_secure_port(target(host, port), credentials))
            except RuntimeError as error:
                _log.debug("cannot listen on %s: %s", target(host, port), error)
    shown = str(options.port) if options.port else f"{DEFAULT_PORT} to {DEFAULT_PORT + PORTS_TRIED - 1}"
    raise UserError(
        f"port {shown} is taken, or {options.host or 'this device'} cannot listen on it",
        hint="choose another with --port, or see `mdi nodes` for a node that runs already",
    )


@asynccontextmanager
async def _announced(options: NodeOptions, fingerprint: str, advertisement: Advertisement) -> AsyncIterator[None]:
    """A node without multicast still serves those who name its address."""
    async with AsyncExitStack() as stack:
        if options.discovery:
            try:
                await stack.enter_async_context(Directory(fingerprint, advertise=advertisement))
            except LinkError as error:
                _log.warning("%s; %s", error, error.hint)
        yield


async def _sweep(stages: Stages) -> None:
    while True:
        await asyncio.sleep(SWEEP_INTERVAL_S)
        try:
            if stages.take_dropped():  # by now nothing holds them any more
                gc.collect()  # calls that ended hold each other, and so their connections to other nodes, in cycles
                await asyncio.to_thread(give_back_freed_memory)
            for session in stages.expire():
                _log.info("freed session %s: its starter did not come back", session)
        except Exception:  # an accelerator's driver, say: later leases must end all the same
            _log.exception("freeing what ended failed")


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
