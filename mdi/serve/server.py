"""From a model that is up to a server that answers, and down again: what runs is finished, what waits is refused."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import uvicorn

from mdi.errors import UserError
from mdi.pipeline.starter import Starter
from mdi.serve.access import Access, is_loopback, new_key
from mdi.serve.admission import Admission
from mdi.serve.answers import ending
from mdi.serve.app import App
from mdi.serve.metrics import Metrics
from mdi.serve.protocol import KEEP_ALIVE_S, MAX_HEADER_BYTES, BoundedProtocol
from mdi.serve.service import Service
from mdi.serve.settings import Defaults

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000  # vLLM's, so that its users' settings fit
DEFAULT_QUEUE = 256
MAX_QUEUE = 1 << 16
MAX_PORT = 65535
DRAIN_S = 30.0  # what runs may take to its end after the first Ctrl-C; most answers take less
CUT_S = 3.0  # for answers that were cut to say so to their clients
BACKLOG = 256


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where to listen, and for whom. `keys` empty: none is needed on loopback, and elsewhere one is made.

    `port` 0 takes a free one. Raises UserError for values that cannot be used.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    keys: tuple[str, ...] = field(default=(), repr=False)
    max_queue: int = DEFAULT_QUEUE
    names: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    defaults: Defaults = field(default_factory=Defaults)
    drain_s: float = DRAIN_S
    log_json: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= MAX_PORT:
            raise UserError(f"{self.port} is not a port", hint=f"choose one from 1 to {MAX_PORT}")
        if not 0 <= self.max_queue <= MAX_QUEUE:
            raise UserError(f"--max-queue {self.max_queue} is outside 0 to {MAX_QUEUE}")
        if not 0 <= self.drain_s <= 3600:
            raise UserError(f"--drain {self.drain_s:g} is outside 0 to 3600 seconds")
        Access(self.keys, origins=frozenset(self.origins))


@dataclass(frozen=True, slots=True)
class Serving:
    """What the user is told once the server answers. `new_key` is set when this start made one."""

    url: str
    models: tuple[str, ...]
    new_key: str | None
    server: Server


async def run_server(starter: Starter, options: ServeOptions, on_ready: Callable[[Serving], None]) -> None:
    """Serves until SIGINT or SIGTERM; a further signal cuts what is still running then. Raises UserError for a port that is taken."""
    stop = asyncio.Event()
    with _signals(stop) as signals:
        async with server(starter, options) as serving:
            on_ready(serving)
            await _first(stop, serving.server.failed)
            signals.on_further(serving.server.cut)
            await serving.server.drain()


class _Signals:
    """The first signal sets `stop`, further ones call what `on_further` was given."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._further: Callable[[], None] = stop.set

    def on_further(self, function: Callable[[], None]) -> None:
        self._further = function

    def __call__(self) -> None:
        if self._stop.is_set():
            self._further()
        self._stop.set()


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[_Signals]:
    loop, signals = asyncio.get_running_loop(), _Signals(stop)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        loop.add_signal_handler(number, signals)
    try:
        yield signals
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])


async def _first(*events: asyncio.Event) -> None:
    """Waits for one of them: a server has no deadline."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


@asynccontextmanager
async def server(starter: Starter, options: ServeOptions) -> AsyncIterator[Serving]:
    """A running server; leaving the context cuts what is still running. Raises UserError for a port that is taken."""
    keys, made = options.keys, None
    if not keys and not is_loopback(options.host):
        made = new_key()
        keys = (made,)
    names = tuple(dict.fromkeys((*options.names, starter.model.source.name)))
    metrics = Metrics(names[0])
    admission = Admission(starter.n_slots, options.max_queue, time.perf_counter)
    service = Service(starter, names, admission, metrics, options.defaults)
    metrics.watch(starter, admission)
    service.encode_once()
    access = Access.of(options.host, keys, options.hosts, options.origins)
    listening = _listen(options.host, options.port)
    port = listening.getsockname()[1]
    running = Server(service, App(service, access, log_json=options.log_json), listening, options.drain_s)
    async with running:
        yield Serving(f"http://{_shown(options.host)}:{port}", names, made, running)


class Server:
    """uvicorn in a task of this loop. Signals are not its matter."""

    def __init__(self, service: Service, app: App, listening: socket.socket, drain_s: float) -> None:
        self.service = service
        self.failed = asyncio.Event()
        """Set when the server ends although nobody ended it."""
        self._listening = listening
        self._drain_s = drain_s
        self._uvicorn = _Uvicorn(_config(app))
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Server:
        self._task = asyncio.create_task(self._uvicorn.serve([self._listening]), name="HTTP server")
        self._task.add_done_callback(lambda _: self.failed.set())
        await _first(self._uvicorn.ready, self.failed)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        if not self._task.done():
            self.cut()
            await self.drain()
        await self._task

    async def drain(self) -> None:
        """Listens no longer, refuses what waits, lets what runs come to its end; cuts it after `drain_s`."""
        assert self._task is not None
        self.service.admission.close(ending())
        self._uvicorn.should_exit = True
        await asyncio.wait([self._task], timeout=self._drain_s)
        self.cut()
        await asyncio.wait([self._task], timeout=CUT_S)
        self._uvicorn.force_exit = True
        self._uvicorn.close_all()
        await asyncio.wait([self._task], timeout=CUT_S)
        if not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def cut(self) -> None:
        """Ends every answer; its client is told so."""
        self.service.admission.close(ending())
        self.service.starter.cancel()


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us, and says when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def close_all(self) -> None:
        for connection in tuple(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        log_level="critical",  # the application logs requests itself, and what uvicorn calls an error is a client that went away
        access_log=False,
        proxy_headers=False,  # or any client could choose its address, and with it its share
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )


def _listen(host: str, port: int) -> socket.socket:
    """Raises UserError when it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setblocking(False)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"cannot listen on {host}, port {port}: {error}", hint="choose another --port, or another --host"
        ) from error
    return listening


def _shown(host: str) -> str:
    """In a URL. What listens at every address is reached by this device's name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if address.version == 6 else host
