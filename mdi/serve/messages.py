"""Conversations as OpenAI's chat API writes them, turned into what chat templates take."""

from __future__ import annotations

import json
from typing import Any

from mdi.serve.body import Fields, check_depth

MAX_MESSAGES = 8192
MAX_PARTS = 1024  # of one message
ROLES = ("system", "developer", "user", "assistant", "tool")


def read_messages(body: Fields) -> list[dict[str, Any]]:
    """Turns for `Model.encode_turns`. Raises ApiError, for pictures and sounds too: the models here read text."""
    turns = [_turn(message) for message in body.objects("messages", MAX_MESSAGES)]
    if not turns:
        raise body.refuse("messages", "is missing or empty")
    return turns


def _turn(message: Fields) -> dict[str, Any]:
    role = message.choice("role", ROLES)
    turn: dict[str, Any] = {"role": "system" if role == "developer" else role}
    calls = [_call(call) for call in message.objects("tool_calls", MAX_PARTS)] if role == "assistant" else []
    turn["content"] = read_content(message, empty=bool(calls) or role == "tool")
    if calls:
        turn["tool_calls"] = calls
    if role == "tool":
        turn["tool_call_id"] = message.text("tool_call_id", "")
    if "name" in message:
        turn["name"] = message.text("name")
    return turn


def read_content(message: Fields, name: str = "content", *, empty: bool = False) -> str:
    """A text, or a list of parts of type text. `empty`: it may be left out."""
    value = message.values.get(name)
    if not isinstance(value, list):
        return message.text(name, "" if empty else None)
    return "".join(_part(part) for part in message.objects(name, MAX_PARTS))


def _part(part: Fields) -> str:
    kind = part.text("type")
    if kind not in ("text", "input_text", "output_text"):
        raise part.refuse("type", f"is {kind[:40]!r}; this server's models read text only")
    return part.text("text")


def _call(call: Fields) -> dict[str, Any]:
    function = call.object("function")
    if function is None:
        raise call.refuse("function", "is missing")
    return call_turn(call.text("id", ""), function.text("name"), parse_arguments(function))


def call_turn(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    """Templates write arguments themselves, so they are given as an object and not as its text."""
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}


def parse_arguments(function: Fields, name: str = "arguments") -> Any:
    text = function.text(name, "{}")
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise function.refuse(name, "is not JSON") from None
    if not isinstance(value, dict):
        raise function.refuse(name, "is not a JSON object")
    check_depth(value)
    return value
