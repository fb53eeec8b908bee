"""Errors across gRPC: which status each MdiError travels as, and which MdiError each status becomes. Pure but for `abort`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple, NoReturn

import grpc

from mdi.errors import (
    ClusterError,
    FrameError,
    HubError,
    InternalError,
    LinkError,
    MdiError,
    ModelError,
    NoRoom,
    PeerError,
    PromptTooLong,
    UserError,
    WrongCluster,
    WrongVersion,
)

# Both fit well within the 8 KiB that gRPC grants a call's trailing metadata, though it may write a character as twelve.
MAX_MESSAGE_CHARS = 400
MAX_HINT_CHARS = 300

CLASS_KEY = "mdi-error"
HINT_KEY = "mdi-hint-bin"  # "-bin": gRPC carries bytes, here UTF-8
PEER_KEY = "mdi-peer-bin"  # the node that an error is about, when it is not the one that sent it
MAX_PEER_CHARS = 64

STATUS_OF: dict[type[MdiError], grpc.StatusCode] = {
    MdiError: grpc.StatusCode.UNKNOWN,
    UserError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelError: grpc.StatusCode.INVALID_ARGUMENT,
    PromptTooLong: grpc.StatusCode.INVALID_ARGUMENT,
    ClusterError: grpc.StatusCode.FAILED_PRECONDITION,
    NoRoom: grpc.StatusCode.FAILED_PRECONDITION,
    PeerError: grpc.StatusCode.ABORTED,
    WrongCluster: grpc.StatusCode.UNAUTHENTICATED,
    WrongVersion: grpc.StatusCode.UNIMPLEMENTED,
    LinkError: grpc.StatusCode.UNAVAILABLE,
    FrameError: grpc.StatusCode.DATA_LOSS,
    HubError: grpc.StatusCode.UNAVAILABLE,
    InternalError: grpc.StatusCode.INTERNAL,
}

# What a status means when no class of ours came with it: gRPC itself made it, or a newer node with a class unknown here.
ERROR_OF: dict[grpc.StatusCode, type[MdiError]] = {
    grpc.StatusCode.OK: InternalError,  # success is never raised
    grpc.StatusCode.CANCELLED: LinkError,
    grpc.StatusCode.UNKNOWN: PeerError,  # an exception that the servicer did not expect
    grpc.StatusCode.INVALID_ARGUMENT: UserError,
    grpc.StatusCode.DEADLINE_EXCEEDED: LinkError,
    grpc.StatusCode.NOT_FOUND: PeerError,
    grpc.StatusCode.ALREADY_EXISTS: PeerError,
    grpc.StatusCode.PERMISSION_DENIED: WrongCluster,
    grpc.StatusCode.RESOURCE_EXHAUSTED: FrameError,  # gRPC's own refusal of a message over the size limit
    grpc.StatusCode.FAILED_PRECONDITION: ClusterError,
    grpc.StatusCode.ABORTED: PeerError,
    grpc.StatusCode.OUT_OF_RANGE: PeerError,
    grpc.StatusCode.UNIMPLEMENTED: WrongVersion,
    grpc.StatusCode.INTERNAL: PeerError,
    grpc.StatusCode.UNAVAILABLE: LinkError,
    grpc.StatusCode.DATA_LOSS: FrameError,
    grpc.StatusCode.UNAUTHENTICATED: WrongCluster,
}

_CLASS_OF_NAME = {error.__name__: error for error in STATUS_OF}

_HINTS: dict[type[MdiError], str] = {
    # A wrong key, no certificate and a dead host all look the same from here.
    LinkError: "Is it on, and in the same network? `mdi doctor {peer}` also tells whether it holds another cluster key.",
    WrongVersion: "Install the same version of MDI on every device: `mdi doctor {peer}` shows both.",
    WrongCluster: "Give every device the same cluster key: `mdi doctor {peer}` compares them.",
}


class Status(NamedTuple):
    """The arguments of `grpc.ServicerContext.abort`."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def to_status(error: MdiError) -> Status:
    """How a servicer says `error`; a subclass that is not in the table travels as its nearest ancestor that is."""
    known = next(kind for kind in type(error).__mro__ if kind in STATUS_OF)
    metadata: list[tuple[str, str | bytes]] = [(CLASS_KEY, known.__name__)]
    if error.hint is not None:
        metadata.append((HINT_KEY, _plain(error.hint, MAX_HINT_CHARS).encode()))
    if error.peer is not None:
        metadata.append((PEER_KEY, _plain(error.peer, MAX_PEER_CHARS).encode()))
    return Status(STATUS_OF[known], _plain(str(error), MAX_MESSAGE_CHARS), tuple(metadata))


async def abort(context: grpc.aio.ServicerContext, error: MdiError) -> NoReturn:
    """Ends the call with `error`."""
    await context.abort(*to_status(error))
    raise InternalError("a call went on after it was aborted")


def from_rpc_error(error: grpc.RpcError, peer: str) -> MdiError:
    """The error that the node `peer` (a name or address, for the message) raised, or that its silence amounts to.

    Its `peer` is the node where it began: an error of a node further on keeps that one's name.
    """
    metadata = {key: value for key, value in error.trailing_metadata() or () if key in (CLASS_KEY, HINT_KEY, PEER_KEY)}
    code, details = error.code(), _plain(error.details() or "", MAX_MESSAGE_CHARS)
    sent = _CLASS_OF_NAME.get(str(metadata.get(CLASS_KEY)))
    if sent is not None:
        found = sent(details, hint=_text(metadata.get(HINT_KEY), MAX_HINT_CHARS))
        found.peer = _text(metadata.get(PEER_KEY), MAX_PEER_CHARS) or peer
        return found
    kind = ERROR_OF[code]
    fallback = _HINTS.get(kind)
    found = kind(_sentence(kind, code, peer, details), hint=fallback and fallback.format(peer=peer))
    found.peer = peer
    return found


def ending(call: grpc.aio.Call) -> asyncio.Future[grpc.aio.AioRpcError | None]:
    """How `call` ends: None for success. Ask right after opening a call that is written to.

    A write that fails because the peer has just ended the call replaces the peer's status by "Internal error from Core"
    (https://github.com/grpc/grpc/issues/36066). Only a done callback sees the status before that.
    """
    ended: asyncio.Future[grpc.aio.AioRpcError | None] = asyncio.get_running_loop().create_future()

    def keep(call: grpc.aio.Call) -> None:
        if not ended.done():
            code = _result(call.code())
            parts = (_result(call.initial_metadata()), _result(call.trailing_metadata()), _result(call.details()))
            ended.set_result(None if code is grpc.StatusCode.OK else grpc.aio.AioRpcError(code, *parts))

    call.add_done_callback(keep)
    return ended


def _result(finished: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing left to wait for."""
    try:
        finished.send(None)
    except StopIteration as end:
        return end.value
    finished.close()
    raise InternalError("gRPC called back before the call was done")


def _sentence(kind: type[MdiError], code: grpc.StatusCode, peer: str, details: str) -> str:
    problem = "cannot be reached" if kind is LinkError else "refused or failed"
    return f"{peer} {problem} ({code.name}{': ' if details else ''}{details})."


def _text(data: object, max_chars: int) -> str | None:
    """What came as bytes of UTF-8."""
    return _plain(data.decode(errors="replace"), max_chars) if isinstance(data, bytes) else None


def _plain(text: str, max_chars: int) -> str:
    """What a peer sends may end on a terminal: printable characters only, and not too many."""
    text = "".join([character if character.isprintable() else " " for character in text])
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
