"""A real server in a thread of its own, with a loop of its own: clients of every kind reach it over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from mdi.cluster.home import Home
from mdi.pipeline.api import StarterOptions
from mdi.pipeline.starter import Starter, open_starter
from mdi.serve.server import ServeOptions, Serving, server

TIMEOUT_S = 60.0


class Running:
    """A server that answers. `call` runs a function in its loop."""

    def __init__(self, starting: StarterOptions, options: ServeOptions, home: Home) -> None:
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self.starter: Starter
        self.serving: Serving
        self._thread = threading.Thread(target=self._run, args=(starting, options, home))
        self._thread.start()
        assert self._ready.wait(TIMEOUT_S)
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def _run(self, starting: StarterOptions, options: ServeOptions, home: Home) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(starting, options, home))

    async def _serve(self, starting: StarterOptions, options: ServeOptions, home: Home) -> None:
        try:
            async with (
                open_starter(starting, home, lambda _: None) as self.starter,
                server(self.starter, options) as self.serving,
            ):
                self._ready.set()
                await self._stop.wait()
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    @property
    def url(self) -> str:
        return self.serving.url

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def post(self, path: str, body: object, **headers: str) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, headers=headers, timeout=TIMEOUT_S)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return httpx2.get(self.url + path, headers=headers, timeout=TIMEOUT_S)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, TIMEOUT_S)

    def metric(self, name: str) -> float:
        """The sum of all its series."""
        found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics").text, re.MULTILINE)
        assert found, name
        return sum(float(value) for value in found)

    def wait_for_metric(self, name: str, value: float) -> None:
        """Until it has this value: what a client sees ends a moment before what it took is given back."""
        for _ in range(int(TIMEOUT_S / 0.01)):
            if self.metric(name) == value:
                return
        raise AssertionError(f"{name} is {self.metric(name)}, not {value}")

    @property
    def has_stalled_reader(self) -> bool:
        """Whether the server waits for a reader to take what is in a connection's buffer."""
        connections = tuple(self.serving.server._uvicorn.server_state.connections)
        return any(connection.flow.write_paused for connection in connections)

    def check_idle(self) -> None:
        self.wait_for_metric("vllm:num_requests_running", 0)
        self.wait_for_metric("vllm:num_requests_waiting", 0)
        self.serving.server.service.admission.check_integrity()


@contextmanager
def running(starting: StarterOptions, options: ServeOptions, home: Home) -> Iterator[Running]:
    server = Running(starting, options, home)
    try:
        yield server
    finally:
        server.end()


def raw_post(path: str, body: dict[str, Any]) -> bytes:
    """As bytes for a socket."""
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
