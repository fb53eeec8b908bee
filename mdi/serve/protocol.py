"""Connections with bounds of their own: how many, how long one may take to ask, how long it may take nothing of its answer."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mdi.serve.errors import ApiError, Shape

MAX_CONNECTIONS = 512  # a process may have 1024 open files by default, and the model's own and the ring's are among them
MAX_HEADER_BYTES = 32 << 10  # of request line and headers together; browsers and proxies stay below 16 KiB
HEADER_TIMEOUT_S = 10.0  # from the connection, or from the first byte of a further request, to the end of its headers
SEND_BUFFER_BYTES = (
    128 << 10
)  # of the system, which doubles it; left alone it takes up to 4 MiB for each reader that does not read
HIGH_BYTES, LOW_BYTES = 64 << 10, 16 << 10  # of ours: writing waits from the one until the other
READER_TIMEOUT_S = 60.0  # to take 48 KiB of the 64 that wait in a full buffer: one slower than 1 KB/s reads nothing
KEEP_ALIVE_S = 30  # between two requests on one connection


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection, with deadlines that it does not have, and refusals in JSON."""

    _asking: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=HIGH_BYTES, low=LOW_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if len(self.connections) > MAX_CONNECTIONS:
            error = ApiError(503, "too many connections", code="too_many_connections", retry_after_s=1, closes=True)
            transport.write(_raw(error))
            transport.close()
        else:
            self._asking = self.loop.call_later(HEADER_TIMEOUT_S, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_asking()
        elif self._asking is None:
            self._asking = self.loop.call_later(HEADER_TIMEOUT_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_asking()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(READER_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too large headers."""
        self.transport.write(_raw(ApiError(400, "this is not an HTTP request, or its headers are too large", closes=True)))
        self.transport.close()

    def _too_slow(self) -> None:
        self._asking = None
        if not self.transport.is_closing():
            self.transport.write(_raw(ApiError(408, f"no request came within {HEADER_TIMEOUT_S:.0f} s", closes=True)))
            self.transport.close()

    def _stop_asking(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None


REASONS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


def _raw(error: ApiError) -> bytes:
    """A whole reply, for connections that have no request."""
    told: dict[str, Any] = Shape.OPENAI.body(error)
    body = json.dumps(told).encode()
    lines = [
        f"HTTP/1.1 {error.status} {REASONS[error.status]}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    lines += [f"{name}: {value}" for name, value in error.headers]
    return "\r\n".join([*lines, "", ""]).encode() + body
