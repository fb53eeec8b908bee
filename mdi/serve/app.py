"""The ASGI application: the routes, and what happens to every request before and after its handler."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from mdi.errors import InternalError, MdiError
from mdi.pipeline.api import Answer
from mdi.serve import anthropic, ollama
from mdi.serve.access import Access
from mdi.serve.answers import ClientGone
from mdi.serve.chat import chat_completions
from mdi.serve.completions import completions
from mdi.serve.errors import ApiError, Shape, api_error
from mdi.serve.exchange import Exchange, Handler
from mdi.serve.health import Health, metrics, model, models, version
from mdi.serve.protocol import MAX_HEADER_BYTES
from mdi.serve.responses import responses
from mdi.serve.service import Service
from mdi.serve.streaming import compact, send_body, send_json
from mdi.serve.tokens import detokenize, tokenize

MAX_ID_CHARS = 128  # of an x-request-id that a client brings

_log = logging.getLogger(__name__)


class App:
    """Checks who asks, gives each request an id, hands it to its route, and turns every failure into an answer of its API's shape."""

    def __init__(self, service: Service, access: Access, *, log_json: bool = False) -> None:
        self._service = service
        self._log_json = log_json
        self._access = access
        self._health = Health(service)
        gets: dict[str, Handler] = {
            "/health": self._tell_health,
            "/version": version,
            "/metrics": metrics,
            "/api/tags": ollama.tags,
            "/api/version": ollama.version,
            "/v1/models": models,
            "/v1/models/{name:path}": model,
        }
        posts: dict[str, Handler] = {
            "/v1/chat/completions": chat_completions,
            "/v1/completions": completions,
            "/v1/messages": anthropic.messages,
            "/v1/messages/count_tokens": anthropic.count_tokens,
            "/v1/responses": responses,
            "/api/chat": ollama.chat,
            "/api/generate": ollama.generate,
            "/api/show": ollama.show,
            "/tokenize": tokenize,
            "/detokenize": detokenize,
        }
        routes = [Route(path, _Endpoint(handler), methods=["GET"]) for path, handler in gets.items()]
        routes += [Route(path, _Endpoint(handler), methods=["POST"]) for path, handler in posts.items()]
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise InternalError(f"an ASGI scope of type {scope['type']}")
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        told = _Told(send, [("x-request-id", request_id), ("x-content-type-options", "nosniff")])
        started_s = time.perf_counter()
        done = Done(request_id, scope["method"], scope["path"])
        try:
            await self._answer(scope, receive, told, headers, done)
        except Exception as error:
            done.status = await self._failed(error, scope, told, request_id)
        finally:
            done.took_ms = round((time.perf_counter() - started_s) * 1000, 1)
            done.status = done.status or told.status
            _log.info("%s", done.json() if self._log_json else done.text())

    async def _answer(self, scope: Scope, receive: Receive, told: _Told, headers: Headers, done: Done) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:  # those that came in one piece
            raise ApiError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers are larger than {MAX_HEADER_BYTES >> 10} KiB"
            )
        self._access.check_source(headers)
        told.headers += self._access.cross_origin(headers)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return await send_body(told, b"", "text/plain", HTTPStatus.NO_CONTENT, self._access.preflight(headers))
        key = self._access.check_key(headers, scope["path"])
        done.client = f"{key or ''}@{(scope.get('client') or ('?',))[0]}"
        scope["app"] = self  # so that the router raises for what it does not know
        scope["exchange"] = call = Exchange(self._service, scope, receive, told, done.client, done.request_id)
        try:
            return await self._router(scope, receive, told)
        finally:
            done.answers = call.answers

    async def _failed(self, error: Exception, scope: Scope, told: _Told, request_id: str) -> int:
        """Tells the client, if nothing was told yet, and the log, if it is not the client's doing. Returns the status."""
        refusal = _http_error(error) if isinstance(error, HTTPException) else api_error(error)
        if refusal.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("%s failed", request_id, exc_info=error)
        elif (
            not isinstance(error, ApiError)
            and isinstance(error, MdiError)
            and refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        ):
            _log.warning("%s: %s; %s", request_id, error, error.hint or "no hint")
        self._service.metrics.refused.labels(str(int(refusal.status))).inc()
        if told.status is None and not isinstance(refusal, ClientGone):
            body = Shape.of(scope["path"]).body(refusal)
            await send_json(told, body, refusal.status, refusal.headers)
        return refusal.status

    async def _tell_health(self, call: Exchange) -> None:
        await self._health.route(call, details=self._access.knows(call.request.headers))


@dataclass(slots=True)
class Done:
    """One request, as the log has it."""

    request_id: str
    method: str
    path: str
    client: str = "@?"
    status: int | None = None
    took_ms: float = 0.0
    answers: list[Answer] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        told: dict[str, Any] = {"id": self.request_id, "client": self.client, "method": self.method, "path": self.path}
        told |= {"status": self.status and int(self.status), "ms": self.took_ms}
        if self.answers:
            timings = [answer.timings for answer in self.answers]
            told["prompt_tokens"] = timings[0].prompt_tokens
            told["new_tokens"] = sum(each.new_tokens for each in timings)
            told["first_token_ms"] = round(min(each.ttft_s for each in timings) * 1000, 1)
        return told

    def text(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.fields().items())

    def json(self) -> str:
        return compact({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **self.fields()})


class _Endpoint:
    """A handler as the router takes it."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Exchange = scope["exchange"]
        call.scope = scope  # with the path's parameters
        await self._handler(call)


class _Told:
    """What has been sent: it remembers the status, and adds headers that every reply has."""

    def __init__(self, send: Send, headers: list[tuple[str, str]]) -> None:
        self._send = send
        self.headers = headers
        self.status: int | None = None

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            more = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers]
            message = {**message, "headers": [*message["headers"], *more]}
        await self._send(message)


def _request_id(headers: Headers) -> str:
    """The client's own where it has a harmless one: it can then find its request in our log."""
    given = headers.get("x-request-id", "")
    if 0 < len(given) <= MAX_ID_CHARS and given.isascii() and given.replace("-", "").replace("_", "").isalnum():
        return given
    return secrets.token_hex(8)


def _http_error(error: HTTPException) -> ApiError:
    """What the router found no handler for."""
    message = "there is no such route" if error.status_code == HTTPStatus.NOT_FOUND else "this route takes another method"
    return ApiError(error.status_code, message, code="not_found", headers=tuple((error.headers or {}).items()))
