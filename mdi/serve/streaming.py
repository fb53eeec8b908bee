"""Answers on the wire: one JSON document when all is there, or events as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from starlette.types import Send

from mdi.pipeline.api import Answer, Piece
from mdi.serve.answers import Answers, ClientGone
from mdi.serve.errors import ApiError, api_error

SILENCE_S = 15.0  # proxies and clients drop a connection that says nothing for 30 to 60 s; a long prompt on a Pi takes minutes
SSE = "text/event-stream; charset=utf-8"


class Dialect(Protocol):
    """How one API writes a stream; every method gives what goes on the wire, perhaps nothing."""

    content_type: str
    keep_alive: str

    def piece(self, index: int, piece: Piece) -> str: ...
    def answer(self, index: int, answer: Answer) -> str: ...
    def end(self) -> str: ...
    def error(self, error: ApiError) -> str: ...


def sse(data: object, event: str | None = None) -> str:
    """One server-sent event of JSON."""
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {compact(data)}\n\n"


def compact(data: object) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


async def send_json(send: Send, data: object, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> None:
    await send_body(send, compact(data).encode(), "application/json", status, headers)


async def send_body(
    send: Send, body: bytes, content_type: str, status: int = 200, headers: Sequence[tuple[str, str]] = ()
) -> None:
    await _start(send, status, [("content-type", content_type), ("content-length", str(len(body))), *headers])
    await _write(send, body, more=False)


async def stream(answers: Answers, dialect: Dialect, send: Send) -> None:
    """The status line waits for the first event, so that a failure before it has a status of its own; but not for ever.

    A failure is raised; one that comes after the status line is also told in the stream.
    """
    begun = False
    try:
        while not answers.done:
            events = await answers.next(SILENCE_S)
            begun = await _begin(send, dialect, begun)
            told = (dialect.answer(i, e) if isinstance(e, Answer) else dialect.piece(i, e) for i, e in events)
            await _write(send, ("".join(told) if events else dialect.keep_alive).encode())
        await _write(send, dialect.end().encode(), more=False)
    except ClientGone:
        raise
    except Exception as error:
        if begun:
            await _write(send, dialect.error(api_error(error)).encode(), more=False)
        raise


async def _begin(send: Send, dialect: Dialect, begun: bool) -> bool:
    if not begun:
        headers = [("content-type", dialect.content_type), ("cache-control", "no-store"), ("x-accel-buffering", "no")]
        await _start(send, 200, headers)
    return True


async def _start(send: Send, status: int, headers: Sequence[tuple[str, str]]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": int(status), "headers": raw})


async def _write(send: Send, body: bytes, *, more: bool = True) -> None:
    """Waits while the connection's buffer is full; `protocol.READER_TIMEOUT_S` bounds for how long."""
    if body or not more:
        await send({"type": "http.response.body", "body": body, "more_body": more})
