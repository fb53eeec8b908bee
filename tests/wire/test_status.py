"""Errors keep their class, sentence and hint across a call, and no status is left without a meaning."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import mdi.errors
from mdi.errors import FrameError, InternalError, LinkError, MdiError, PeerError, WrongVersion
from mdi.wire.status import ERROR_OF, MAX_HINT_CHARS, MAX_MESSAGE_CHARS, STATUS_OF, from_rpc_error, to_status


def family(kind: type[MdiError]) -> Iterator[type[MdiError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == mdi.errors.__name__:
            yield from family(child)


def rpc_error(code: grpc.StatusCode, details: str | None = None, trailing: Any = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=details)


def test_every_status_code_has_an_error() -> None:
    assert set(ERROR_OF) == set(grpc.StatusCode)


def test_every_error_has_a_status_code() -> None:
    assert set(STATUS_OF) == set(family(MdiError))
    assert grpc.StatusCode.OK not in STATUS_OF.values()


@pytest.mark.parametrize("kind", list(family(MdiError)))
@pytest.mark.parametrize("hint", [None, "Type `mdi status`. Größe: 4 GiB."])
def test_an_error_comes_back_as_it_was(kind: type[MdiError], hint: str | None) -> None:
    error = kind("Blocks 3 to 5 do not fit: 2.1 GiB missing.", hint=hint)
    back = from_rpc_error(rpc_error(*to_status(error)), "pi")
    assert (type(back), str(back), back.hint) == (kind, str(error), hint)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_a_bare_status_becomes_the_error_it_means_and_names_the_peer(code: grpc.StatusCode) -> None:
    back = from_rpc_error(rpc_error(code, "Socket closed"), "pi-4")
    assert type(back) is ERROR_OF[code]
    assert "pi-4" in str(back)
    assert code.name in str(back)
    assert "Socket closed" in str(back)


def test_an_unreachable_peer_comes_with_something_to_try() -> None:
    back = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE), "pi-4")
    assert isinstance(back, LinkError)
    assert "mdi doctor pi-4" in str(back.hint)


@pytest.mark.parametrize("name", ["SystemExit", "MdiError.__init__", "", "Exception", b"FrameError", "__import__"])
def test_a_class_that_is_not_ours_falls_back_to_the_code(name: str | bytes) -> None:
    trailing = (("mdi-error", name), ("mdi-hint-bin", b"rm -rf /"))
    back = from_rpc_error(rpc_error(grpc.StatusCode.ABORTED, "no", trailing), "pi")
    assert type(back) is PeerError
    assert back.hint is None


def test_a_class_that_the_table_lacks_travels_as_its_ancestor() -> None:
    class Newer(WrongVersion):
        pass

    assert type(from_rpc_error(rpc_error(*to_status(Newer("too new"))), "pi")) is WrongVersion


def test_what_a_peer_says_is_bounded_and_cannot_steer_a_terminal() -> None:
    hostile = "\x1b[2J\r\n\u202e" + "я" * 100_000
    code, details, trailing = to_status(FrameError(hostile, hint=hostile))
    assert sum(len(pickle.dumps(part)) for part in (details, trailing)) < 4096
    for error in (
        from_rpc_error(rpc_error(code, details, trailing), "pi"),
        from_rpc_error(rpc_error(code, hostile, (("mdi-error", "FrameError"), ("mdi-hint-bin", hostile.encode()))), "pi"),
        from_rpc_error(rpc_error(code, hostile), "pi"),
    ):
        assert str(error).isprintable()
        assert len(str(error)) < MAX_MESSAGE_CHARS + 100
        assert error.hint is None or (error.hint.isprintable() and len(error.hint) <= MAX_HINT_CHARS)


def test_a_hint_of_broken_bytes_does_no_harm() -> None:
    back = from_rpc_error(
        rpc_error(grpc.StatusCode.INTERNAL, None, (("mdi-error", "InternalError"), ("mdi-hint-bin", b"\xff\xfe"))), "pi"
    )
    assert type(back) is InternalError
    assert back.hint == "��"


def test_an_error_keeps_the_name_of_the_node_where_it_began() -> None:
    """attic fails; kitchen, which sends to it, tells the starter, which knows kitchen alone."""
    at_kitchen = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE), "attic \N{SNOWMAN}")
    at_starter = from_rpc_error(rpc_error(*to_status(at_kitchen)), "kitchen")
    assert (at_kitchen.peer, at_starter.peer) == ("attic \N{SNOWMAN}", "attic \N{SNOWMAN}")
    assert from_rpc_error(rpc_error(*to_status(FrameError("damaged"))), "kitchen").peer == "kitchen"
    assert FrameError("damaged").peer is None


@pytest.mark.parametrize("name", [b"\xff\x1b[2J" * 1000, "text"])
def test_what_a_peer_calls_another_is_bounded_and_printable(name: object) -> None:
    found = from_rpc_error(
        rpc_error(*to_status(FrameError("x"))[:2], (("mdi-error", "FrameError"), ("mdi-peer-bin", name))), "pi"
    ).peer
    assert found is not None
    assert len(found) <= 64
    assert found.isprintable()
