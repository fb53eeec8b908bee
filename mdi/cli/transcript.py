"""Conversations as files: JSON with the messages in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdi.cluster.private_files import write_private
from mdi.errors import UserError
from mdi.model.chat import Message

FORMAT = "mdi conversation 1"
ROLES = ("system", "user", "assistant")
MAX_FILE_BYTES = 64 << 20  # the longest contexts are a million tokens of some 5 bytes: a wrong path must not fill the memory


def save(file: str, model: str, messages: Sequence[Message]) -> None:
    """Write whole or not at all, readable by the user only: it is a private conversation. Raises UserError."""
    path = Path(file).expanduser()
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = json.dumps({"format": FORMAT, "model": model, "messages": turns}, indent=1, ensure_ascii=False)
    try:
        write_private(path, f"{text}\n".encode(errors="replace"))
    except UserError as error:
        raise UserError(str(error), hint="choose a directory that exists and is yours") from error


def load(file: str) -> list[Message]:
    """The messages of a saved conversation. Raises UserError that says what is wrong with the file."""
    path = Path(file).expanduser()
    try:
        with path.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: no conversation is that long")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"it is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _refusal(path, f"it has no {FORMAT!r} as its format")
    turns = content.get("messages")
    if not isinstance(turns, list):
        raise _refusal(path, "its messages are not a list")
    return [_message(path, number, turn) for number, turn in enumerate(turns, 1)]


def _message(path: Path, number: int, turn: Any) -> Message:
    if not isinstance(turn, dict) or not all(isinstance(turn.get(field), str) for field in ("role", "content")):
        raise _refusal(path, f"message {number} has no role and content")
    if turn["role"] not in ROLES:
        raise _refusal(path, f"message {number} has the role {turn['role'][:40]!r}, not one of {', '.join(ROLES)}")
    if turn["role"] == "system" and number != 1:
        raise _refusal(path, f"message {number} is a system message, which can only be the first")
    return Message(turn["role"], turn["content"])


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not a saved conversation: {reason}", hint="/load reads what /save wrote")
