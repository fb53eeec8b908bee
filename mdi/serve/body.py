"""A request's JSON, read within bounds of size, time and depth, and its fields by type."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, NoReturn

from starlette.requests import Request

from mdi.serve.errors import ApiError, refused

MAX_BODY_BYTES = 4 << 20  # 128,000 tokens are 0.6 MiB of text; in JSON, with \uXXXX for every letter, six times as much
MAX_THROWN_BYTES = 4 * MAX_BODY_BYTES
BODY_TIMEOUT_S = 30.0  # 4 MiB over a bad Wi-Fi link take 10
MAX_DEPTH = 64  # JSON schemas of published APIs nest some 20 deep; Python's own recursion ends at 1000
LONG_BYTES = 32 << 10  # parsed in a thread: 32 KiB take 0.3 ms, which the frames of others may wait

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HALVES = re.compile(r"[\ud800-\udfff]")


async def read_body(request: Request) -> Fields:
    """The JSON object that was sent. Raises ApiError: too large, too slow, not JSON, not an object, nested too deep."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            data = await _read(request)
    except TimeoutError:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT, f"the request did not come within {BODY_TIMEOUT_S:.0f} s", closes=True
        ) from None
    return Fields(_parse(data) if len(data) <= LONG_BYTES else await asyncio.to_thread(_parse, data))


async def _read(request: Request) -> bytes:
    """What is a little too large is read to its end and thrown away: a client that is cut off while it sends does not hear why."""
    length = request.headers.get("content-length", "0")
    data, n_bytes = bytearray(), 0
    if length.isdecimal() and int(length[:20]) <= MAX_THROWN_BYTES:
        async for piece in request.stream():
            n_bytes += len(piece)
            if n_bytes <= MAX_BODY_BYTES:
                data += piece
            elif n_bytes > MAX_THROWN_BYTES:
                break
        else:
            if n_bytes <= MAX_BODY_BYTES:
                return bytes(data)
    raise ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request is larger than {MAX_BODY_BYTES >> 20} MiB",
        code="request_too_large",
        closes=True,
    )


def _parse(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode(), parse_constant=_no_number)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(HTTPStatus.BAD_REQUEST, "the body is not a JSON object", code="invalid_json")
    check_depth(value)
    return _well_formed(value) if _SURROGATE.search(data) else value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def check_depth(value: dict[str, Any]) -> None:
    """Raises ApiError for what functions that call themselves could not go through."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [member for each in level for member in _members(each) if isinstance(member, dict | list)]
        if not level:
            return
    raise _too_deep()


def _members(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _too_deep() -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, f"the JSON is nested more than {MAX_DEPTH} deep", code="invalid_json")


def _well_formed(value: Any) -> Any:
    """Halves of characters, which JSON can spell and no tokenizer takes, become U+FFFD."""
    if isinstance(value, str):
        return _HALVES.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {_well_formed(name): _well_formed(member) for name, member in value.items()}
    return [_well_formed(member) for member in value] if isinstance(value, list) else value


class Fields:
    """A JSON object by type. Every method raises ApiError (400) that names the field; null counts as left out."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        self.values = values
        self._path = path

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def refuse(self, name: str, why: str) -> ApiError:
        return refused(self._path + name, f"{self._path}{name} {why}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.refuse(name, "is missing" if value is None else "is not a text")
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str | None = None) -> str:
        value = self.text(name, default)
        if value not in choices:
            raise self.refuse(name, f"is {value[:40]!r}, not one of {', '.join(choices)}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(name, "is neither true nor false")
        return default if value is None else value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self.values.get(name)
        if value is None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
            or not math.isfinite(value)
        ):
            raise self.refuse(name, f"is not a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(name, f"is not a whole number from {low} to {high}")
        return value

    def object(self, name: str) -> Fields | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(name, "is not an object")
        return None if value is None else Fields(value, f"{self._path}{name}.")

    def list(self, name: str, most: int) -> list[Any]:
        """Empty when it is left out."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most:
            raise self.refuse(name, f"is not a list of at most {most}")
        return value

    def objects(self, name: str, most: int) -> Iterator[Fields]:
        for i, value in enumerate(self.list(name, most)):
            if not isinstance(value, dict):
                raise self.refuse(f"{name}[{i}]", "is not an object")
            yield Fields(value, f"{self._path}{name}[{i}].")

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """Of a text, or of a list of texts; none of them empty."""
        value = self.values.get(name)
        values = [value] if isinstance(value, str) else self.list(name, most)
        if not all(isinstance(each, str) and each for each in values):
            raise self.refuse(name, "holds something that is not a text, or an empty one")
        return tuple(values)
