"""`/v1/messages`, as Anthropic's clients speak it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

from mdi.pipeline.api import Answer, Piece
from mdi.serve.body import Fields, read_body
from mdi.serve.chat import Chat
from mdi.serve.errors import ApiError, Shape
from mdi.serve.exchange import Exchange
from mdi.serve.messages import MAX_MESSAGES, MAX_PARTS, call_turn, read_content
from mdi.serve.outcome import Delta, Outcome, Reason
from mdi.serve.service import Service
from mdi.serve.settings import Settings, read_max_tokens, read_settings, read_stop
from mdi.serve.streaming import SSE, sse
from mdi.serve.tools import MAX_TOOLS, ToolCall, Tools, chosen

STOP_REASONS = {Reason.STOP: "end_turn", Reason.LENGTH: "max_tokens", Reason.TOOL_CALLS: "tool_use"}
THOUGHTS = ("thinking", "redacted_thinking")  # of earlier answers: no model here wrote them, and none is shown them


async def messages(call: Exchange) -> None:
    service, body = call.service, await read_body(call.request)
    name = service.check_model(body)
    if "max_tokens" not in body:
        raise body.refuse("max_tokens", "is missing")
    chat, wants_stream = _chat(service, body), body.flag("stream")
    with call.reserve(1) as reservation:
        requests = await service.prepared(lambda: chat.requests(service, None))
        told = Told(name, Outcome(chat.finder(service.starter.model)), len(requests[0].prompt_ids))
        if wants_stream:
            await call.stream(reservation, requests, told)
        else:
            await call.whole(reservation, requests, told.whole)


async def count_tokens(call: Exchange) -> None:
    service, body = call.service, await read_body(call.request)
    service.check_model(body)
    chat = _chat(service, body)
    ids = await service.prepared(lambda: chat.encode(service))
    await call.json({"input_tokens": len(ids)})


def _chat(service: Service, body: Fields) -> Chat:
    settings = read_settings(body, service.defaults, logprobs=None, max_tokens=read_max_tokens(body, "max_tokens"))
    settings = Settings(settings.params, settings.seed, 1, settings.max_tokens, read_stop(body, "stop_sequences"))
    if not body.list("messages", MAX_MESSAGES):
        raise body.refuse("messages", "is missing or empty")
    return Chat(list(_turns(body)), settings, _tools(body))


def _turns(body: Fields) -> Iterator[dict[str, Any]]:
    if "system" in body:
        yield {"role": "system", "content": read_content(body, "system")}
    for message in body.objects("messages", MAX_MESSAGES):
        role = message.choice("role", ("user", "assistant", "system"))
        if isinstance(message.values.get("content"), list):
            yield from _blocks(role, message)
        else:
            yield {"role": role, "content": message.text("content")}


def _blocks(role: str, message: Fields) -> Iterator[dict[str, Any]]:
    """A message's parts as turns: results of tools are turns of their own, before what the user says beside them."""
    texts, calls = [], []
    for block in message.objects("content", MAX_PARTS):
        match kind := block.text("type"):
            case "text":
                texts.append(block.text("text"))
            case "tool_use":
                given = block.object("input")
                calls.append(call_turn(block.text("id"), block.text("name"), given.values if given else {}))
            case "tool_result":
                content = read_content(block, empty=True)
                yield {"role": "tool", "tool_call_id": block.text("tool_use_id"), "content": content}
            case _ if kind not in THOUGHTS:
                raise block.refuse("type", f"is {kind[:40]!r}; this server's models read text only")
    if texts or calls:
        yield {"role": role, "content": "".join(texts)} | ({"tool_calls": calls} if calls else {})


def _tools(body: Fields) -> Tools:
    offered = []
    for tool in body.objects("tools", MAX_TOOLS):
        schema = tool.object("input_schema")
        function = {"name": tool.text("name"), "description": tool.text("description", "")}
        offered.append({"type": "function", "function": function | {"parameters": schema.values if schema else {}}})
    choice = body.object("tool_choice")
    if choice is None:
        return chosen(body, tuple(offered), "auto")
    match choice.choice("type", ("auto", "any", "tool", "none")):
        case "tool":
            return chosen(body, tuple(offered), (choice.text("name"),))
        case "any":
            return chosen(body, tuple(offered), "required")
        case other:
            return chosen(body, tuple(offered), other)


class Told:
    """An answer as Anthropic writes it: whole, and as a Dialect."""

    content_type = SSE
    keep_alive = sse({"type": "ping"}, "ping")

    def __init__(self, name: str, outcome: Outcome, n_prompt: int) -> None:
        self._name = name
        self._id = f"msg_{secrets.token_hex(12)}"
        self._outcome = outcome
        self._n_prompt = n_prompt
        self._begun = False
        self._block = -1  # the number of the last one
        self._in_text = False

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        outcome = self._outcome.whole(answers[0])
        content: list[dict[str, Any]] = [{"type": "text", "text": outcome.text}] if outcome.text or not outcome.calls else []
        content += [_tool_use(call, json.loads(call.arguments)) for call in outcome.calls]
        return self._message(content) | self._ending(answers[0]) | {"usage": _usage(answers[0])}

    def piece(self, index: int, piece: Piece) -> str:
        return self._start() + self._delta(self._outcome.piece(piece))

    def answer(self, index: int, answer: Answer) -> str:
        told = self._start() + self._delta(self._outcome.end(answer)) + self._stop_text()
        return told + self._event("message_delta", delta=self._ending(answer), usage=_usage(answer))

    def end(self) -> str:
        return self._event("message_stop")

    def error(self, error: ApiError) -> str:
        return sse(Shape.ANTHROPIC.body(error), "error")

    def _start(self) -> str:
        if self._begun:
            return ""
        self._begun = True
        used = {"input_tokens": self._n_prompt, "output_tokens": 0}
        message = self._message([]) | {"stop_reason": None, "stop_sequence": None, "usage": used}
        return self._event("message_start", message=message)

    def _delta(self, delta: Delta) -> str:
        """One event for a token once there is text; a call is a block of its own."""
        told = ""
        if delta.text or (self._in_text and delta.is_token and not delta.calls):
            if not self._in_text:
                told += self._start_block({"type": "text", "text": ""})
                self._in_text = True
            told += self._event("content_block_delta", index=self._block, delta={"type": "text_delta", "text": delta.text})
        for call in delta.calls:
            told += self._stop_text() + self._start_block(_tool_use(call, {}))
            change = {"type": "input_json_delta", "partial_json": call.arguments}
            told += self._event("content_block_delta", index=self._block, delta=change)
            told += self._event("content_block_stop", index=self._block)
        return told

    def _start_block(self, block: dict[str, Any]) -> str:
        self._block += 1
        return self._event("content_block_start", index=self._block, content_block=block)

    def _stop_text(self) -> str:
        told = self._event("content_block_stop", index=self._block) if self._in_text else ""
        self._in_text = False
        return told

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._name, "content": content}

    def _ending(self, answer: Answer) -> dict[str, Any]:
        by_text = answer.stop is not None and not self._outcome.calls
        reason = "stop_sequence" if by_text else STOP_REASONS[self._outcome.reason]
        return {"stop_reason": reason, "stop_sequence": answer.stop if by_text else None}

    def _event(self, kind: str, **told: Any) -> str:
        return sse({"type": kind, **told}, kind)


def _tool_use(call: ToolCall, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.call_id, "name": call.name, "input": arguments}


def _usage(answer: Answer) -> dict[str, int]:
    """Anthropic counts what was found in the cache beside the other input."""
    timings = answer.timings
    return {
        "input_tokens": timings.prompt_tokens - timings.reused_tokens,
        "cache_read_input_tokens": timings.reused_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": timings.new_tokens,
    }
