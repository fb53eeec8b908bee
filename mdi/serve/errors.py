"""What a client is told when it gets no answer: status code, and one shape for each API.

ApiError's `kind` is the word that OpenAI's clients know; `code` says more precisely what is wrong, `param` which field of the request.
"""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus
from typing import Any

from mdi.errors import ClusterError, HubError, MdiError, PromptTooLong, UserError

RETRY_S = 5  # after a failure of the cluster: planning again and loading what is missing takes some seconds


class ApiError(MdiError):
    """`retry_after_s` is told in the header of that name. `closes`: the connection cannot be used again, its request was not read."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        closes: bool = False,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.closes = closes
        self._headers = headers

    @property
    def headers(self) -> list[tuple[str, str]]:
        retry = [] if self.retry_after_s is None else [("retry-after", str(self.retry_after_s))]
        return [*self._headers, *retry, *([("connection", "close")] if self.closes else [])]


KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class Shape(Enum):
    """How an API writes its errors."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"

    @classmethod
    def of(cls, path: str) -> Shape:
        if path.startswith("/v1/messages"):
            return cls.ANTHROPIC
        return cls.OLLAMA if path.startswith("/api/") else cls.OPENAI

    def body(self, error: ApiError) -> dict[str, Any]:
        match self:
            case Shape.OPENAI:
                told = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
                return {"error": told}
            case Shape.ANTHROPIC:
                kind = ANTHROPIC_KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
                return {"type": "error", "error": {"type": kind, "message": str(error)}}
            case Shape.OLLAMA:
                return {"error": str(error)}


def api_error(error: BaseException) -> ApiError:
    """What a client is told of any failure. What is none of ours, or our own bug, keeps its details to the log."""
    match error:
        case ApiError():
            return error
        case PromptTooLong():
            return ApiError(HTTPStatus.BAD_REQUEST, str(error), code="context_length_exceeded")
        case UserError():
            return ApiError(HTTPStatus.BAD_REQUEST, str(error))
        case ClusterError() | HubError():
            return unavailable(f"the model cannot answer now: {error}", code="cluster_error")
        case _:
            return ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR, "an error inside the server; its log says more", code="internal_error"
            )


def refused(param: str | None, message: str) -> ApiError:
    """A field of the request that cannot be used."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code="invalid_value")


def unavailable(message: str, *, code: str, retry_after_s: int = RETRY_S) -> ApiError:
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code=code, retry_after_s=retry_after_s)
