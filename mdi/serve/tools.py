"""Tool calls: how models write them, found in the text while it streams.

Each family was trained to write calls in its own way, which its chat template tells. What does not turn out to be a call is text.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mdi.serve.body import Fields

MAX_TOOLS = 128  # as OpenAI
MAX_CALLS = 64  # of one answer


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON, as the model wrote it."""

    call_id: str
    name: str
    arguments: str


class Way(Enum):
    """How calls stand in a text: what begins one, and what ends it (None: the end of the answer)."""

    TAGGED = ("<tool_call>", "</tool_call>")  # Hermes, Qwen 2.5 and 3, SmolLM3: {"name": ..., "arguments": {...}} in tags
    LISTED = ("[TOOL_CALLS]", None)  # Mistral: a list of such objects
    BARE = ("{", None)  # Llama 3: the whole answer is {"name": ..., "parameters": {...}}

    @classmethod
    def of(cls, template: str) -> Way:
        for way in (cls.TAGGED, cls.LISTED):
            if way.value[0] in template:
                return way
        return cls.BARE


@dataclass(frozen=True, slots=True)
class Found:
    """What a piece of the answer gave: text for the reader, and calls that are complete."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class CallFinder:
    """Takes an answer's text as it comes, gives what is text, and calls once they are complete. Pure but for the calls' ids.

    `names`: the tools that there are; what names another one is text. Text that may yet begin a call is held back.
    """

    def __init__(self, way: Way, names: frozenset[str]) -> None:
        self._begin, self._end = way.value
        self._only_first = way is Way.BARE  # a brace in the middle of a sentence begins nothing
        self._names = names
        self._held = ""
        self._inside = False
        self._told = False

    def push(self, text: str) -> Found:
        self._held += text
        shown, calls = "", []
        while self._held:
            if self._inside:
                end = -1 if self._end is None else self._held.find(self._end)
                if self._end is None or end < 0:
                    break
                found = self._calls(self._held[:end])
                shown += "" if found else self._begin + self._held[:end] + self._end
                calls += found
                self._held, self._inside = self._held[end + len(self._end) :], False
                continue
            part, self._inside = self._outside()
            shown += part
            if not self._inside:
                break
        self._told = self._told or bool(shown.strip())
        return Found(self._between(shown, calls), tuple(calls))

    def finish(self) -> Found:
        """What is held, once no more text comes."""
        held, self._held = self._held, ""
        if not self._inside:
            return Found(held)
        self._inside = False
        calls = self._calls(self._begin + held if self._only_first else held)
        return Found("", tuple(calls)) if calls else Found(self._begin + held)

    def _outside(self) -> tuple[str, bool]:
        """Text up to where a call begins or might begin; whether one begins there."""
        if self._only_first:
            begins = not self._told and self._held.lstrip().startswith(self._begin)
            if begins:
                self._held = self._held.lstrip().removeprefix(self._begin)
                return "", True
            waits = not self._told and not self._held.strip()
            shown, self._held = ("", self._held) if waits else (self._held, "")
            return shown, False
        place = self._held.find(self._begin)
        if place >= 0:
            shown, self._held = self._held[:place], self._held[place + len(self._begin) :]
            return shown, True
        keep = next((n for n in range(len(self._begin) - 1, 0, -1) if self._held.endswith(self._begin[:n])), 0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, False

    def _between(self, shown: str, calls: list[ToolCall]) -> str:
        """White space around calls belongs to the way of writing them."""
        return "" if not self._told and (calls or self._inside) and not shown.strip() else shown

    def _calls(self, text: str) -> list[ToolCall]:
        """Empty for what is no call of a known tool."""
        try:
            value, _ = json.JSONDecoder().raw_decode(text.lstrip())
        except (ValueError, RecursionError):
            return []
        found = [_call(each) for each in (value if isinstance(value, list) else [value])]
        good = [call for call in found if call is not None and call.name in self._names]
        return good if len(good) == len(found) <= MAX_CALLS else []


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return ToolCall(new_call_id(), name, arguments)
    return ToolCall(new_call_id(), name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class Tools:
    """What a request offers to call, as OpenAI writes it, and whether it must.

    `forced`: the names of which one must be called; the answer is then held to a schema, and nothing else can come.
    """

    offered: tuple[dict[str, Any], ...] = ()
    forced: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool["function"]["name"] for tool in self.offered)

    @property
    def schema(self) -> dict[str, Any]:
        """Of an answer that is one call of a forced tool."""
        by_name = {tool["function"]["name"]: tool["function"].get("parameters") or {"type": "object"} for tool in self.offered}
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": by_name[name]},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name in self.forced
        ]
        return calls[0] if len(calls) == 1 else {"anyOf": calls}

    def finder(self, template: str) -> CallFinder | None:
        if not self.offered:
            return None
        return CallFinder(Way.BARE if self.forced else Way.of(template), self.names)


def read_tools(body: Fields) -> Tools:
    """OpenAI's `tools` and `tool_choice`. Raises ApiError."""
    offered = []
    for tool in body.objects("tools", MAX_TOOLS):
        tool.choice("type", ("function",))
        function = tool.object("function")
        if function is None:
            raise tool.refuse("function", "is missing")
        function.text("name")
        function.object("parameters")
        offered.append(tool.values)
    return chosen(body, tuple(offered), choice_of(body))


def choice_of(body: Fields) -> str | tuple[str]:
    """auto, none, required, or the name of one tool in a tuple."""
    if isinstance(body.values.get("tool_choice"), dict):
        choice = body.object("tool_choice")
        assert choice is not None
        named = choice.object("function") or choice  # /v1/responses has the name one level higher
        return (named.text("name"),)
    return body.choice("tool_choice", ("auto", "none", "required"), "auto")


def chosen(body: Fields, offered: tuple[dict[str, Any], ...], choice: str | tuple[str]) -> Tools:
    """Raises ApiError for a choice that is not offered."""
    names = [tool["function"]["name"] for tool in offered]
    if len(set(names)) < len(names):
        raise body.refuse("tools", "names a tool twice")
    if choice == "none":
        return Tools()
    if choice == "auto":
        return Tools(offered)
    forced = tuple(names) if choice == "required" else tuple(choice)
    if not forced or not set(forced) <= set(names):
        raise body.refuse("tool_choice", "asks for a tool that is not among tools")
    return Tools(offered, forced)
