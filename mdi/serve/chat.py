"""`/v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mdi.engine.constraint import Constraint
from mdi.errors import UserError
from mdi.model.source import Model
from mdi.model.tokenizer import Tokenizer
from mdi.pipeline.api import Answer, Piece, Request
from mdi.serve.answers import check_room
from mdi.serve.body import Fields, read_body
from mdi.serve.errors import ApiError, Shape
from mdi.serve.exchange import Exchange
from mdi.serve.messages import read_messages
from mdi.serve.outcome import Delta, Outcome
from mdi.serve.service import Service
from mdi.serve.settings import Settings, read_constraint, read_max_tokens, read_settings, read_top_logprobs, schema_constraint
from mdi.serve.streaming import SSE, sse
from mdi.serve.tools import CallFinder, ToolCall, Tools, read_tools
from mdi.serve.usage import chat_logprobs, usage

NOT_HERE = ("audio", "modalities", "functions", "function_call", "web_search_options", "prediction", "echo", "prompt_logprobs")


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation to go on with, whichever API it came by."""

    turns: Sequence[Mapping[str, Any]]
    settings: Settings
    tools: Tools = field(default_factory=Tools)
    options: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, service: Service) -> list[int]:
        """Token ids. It renders a template: call it in a thread. Raises ApiError, ModelError when the template refuses."""
        model = service.starter.model
        if self.tools.offered and not model.chat.takes_tools:
            raise UserError(f"{service.name} was not trained to call tools: its chat template has none")
        return model.encode_turns(self.turns, self.tools.offered or None, self.options)

    def requests(self, service: Service, constraint: Constraint | None) -> list[Request]:
        """As `encode`, with all that the answers need."""
        if self.tools.forced:
            if constraint is not None:
                raise UserError("tool_choice asks for a call, and response_format for something else")
            constraint = schema_constraint(self.tools.schema)
        return self.settings.requests(check_room(service, self.encode(service), "messages"), constraint=constraint)

    def finder(self, model: Model) -> CallFinder | None:
        return self.tools.finder(model.chat.source) if self.tools.offered else None


async def chat_completions(call: Exchange) -> None:
    service, body = call.service, await read_body(call.request)
    name, chat, wants_stream, wants_usage = _read(service, body)
    with call.reserve(chat.settings.n) as reservation:
        requests = await service.prepared(lambda: chat.requests(service, read_constraint(body)))
        wants_logprobs = chat.settings.params.logprobs is not None
        told = Told(name, service.starter.model, chat, wants_logprobs=wants_logprobs, wants_usage=wants_usage)
        if wants_stream:
            await call.stream(reservation, requests, told)
        else:
            await call.whole(reservation, requests, told.whole)


def _read(service: Service, body: Fields) -> tuple[str, Chat, bool, bool]:
    name = service.check_model(body)
    check_not_here(body, NOT_HERE)
    tools = read_tools(body)
    options = body.object("chat_template_kwargs")
    logprobs = read_top_logprobs(body, "top_logprobs") if body.flag("logprobs") else None
    max_tokens = read_max_tokens(body, "max_completion_tokens", "max_tokens")
    settings = read_settings(body, service.defaults, logprobs=logprobs, max_tokens=max_tokens)
    return name, Chat(read_messages(body), settings, tools, options.values if options else {}), *read_stream(body)


def check_not_here(body: Fields, names: Sequence[str]) -> None:
    """Raises ApiError for fields that would change the answer, and that this server would have to leave out."""
    for name in names:
        if body.values.get(name) not in (None, False, 0, [], ["text"]):
            raise body.refuse(name, "is not supported")


def read_stream(body: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether the stream ends with the usage."""
    options = body.object("stream_options")
    return body.flag("stream"), options is not None and options.flag("include_usage")


class Told:
    """A chat's answers as OpenAI writes them: whole, and as a Dialect."""

    content_type = SSE
    keep_alive = ": still working\n\n"

    def __init__(self, name: str, model: Model, chat: Chat, *, wants_logprobs: bool, wants_usage: bool) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": name}
        self._tokenizer: Tokenizer = model.tokenizer
        self._n = chat.settings.n
        self._outcomes = [Outcome(chat.finder(model)) for _ in range(self._n)]
        self._begun: set[int] = set()
        self._wants_logprobs = wants_logprobs
        self._wants_usage = wants_usage

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage(answers, self._n)}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        outcome = self._outcomes[index].whole(answer)
        message: dict[str, Any] = {"role": "assistant", "content": outcome.text, "refusal": None}
        if outcome.calls:
            message |= {"content": outcome.text or None, "tool_calls": [_call(call) for call in outcome.calls]}
        logprobs = chat_logprobs(answer.logprobs, self._tokenizer) if self._wants_logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": outcome.reason}

    def piece(self, index: int, piece: Piece) -> str:
        return self._delta(index, self._outcomes[index].piece(piece))

    def answer(self, index: int, answer: Answer) -> str:
        outcome = self._outcomes[index]
        rest = outcome.end(answer)
        told = self._delta(index, rest) if rest.text or rest.calls or index not in self._begun else ""
        return told + self._chunk({"index": index, "delta": {}, "logprobs": None, "finish_reason": outcome.reason})

    def end(self) -> str:
        answers = [outcome.answer for outcome in self._outcomes if outcome.answer is not None]
        told = self._chunk(None, usage(answers, self._n)) if self._wants_usage else ""
        return told + "data: [DONE]\n\n"

    def error(self, error: ApiError) -> str:
        return sse(Shape.OPENAI.body(error)) + "data: [DONE]\n\n"

    def _delta(self, index: int, delta: Delta) -> str:
        """One event for a token; the first one says whose words these are."""
        said: dict[str, Any] = {} if index in self._begun else {"role": "assistant"}
        self._begun.add(index)
        said["content"] = delta.text
        if delta.calls:
            first = len(self._outcomes[index].calls) - len(delta.calls)
            said["tool_calls"] = [{"index": first + i, **_call(call)} for i, call in enumerate(delta.calls)]
        logprobs = None if delta.logprobs is None else chat_logprobs([delta.logprobs], self._tokenizer)
        return self._chunk({"index": index, "delta": said, "logprobs": logprobs, "finish_reason": None})

    def _chunk(self, choice: dict[str, Any] | None, used: dict[str, Any] | None = None) -> str:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [] if choice is None else [choice]}
        return sse(chunk | {"usage": used} if self._wants_usage else chunk)


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
