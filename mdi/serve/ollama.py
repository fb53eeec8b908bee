"""`/api/chat`, `/api/generate`, `/api/tags` and what Ollama's clients ask beside them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from mdi import __version__
from mdi.engine.constraint import Constraint
from mdi.errors import UserError
from mdi.pipeline.api import Answer, Piece, Request
from mdi.serve.answers import check_room
from mdi.serve.body import Fields, read_body
from mdi.serve.chat import Chat, check_not_here
from mdi.serve.errors import ApiError, Shape
from mdi.serve.exchange import Exchange
from mdi.serve.messages import MAX_MESSAGES, MAX_PARTS, ROLES, call_turn, parse_arguments
from mdi.serve.outcome import Delta, Outcome, Reason
from mdi.serve.service import Service
from mdi.serve.settings import MAX_TOKENS, Settings, read_settings, schema_constraint
from mdi.serve.streaming import compact
from mdi.serve.tools import ToolCall, read_tools

NANOSECONDS = 1e9
RENAMED = {"repeat_penalty": "repetition_penalty"}


async def chat(call: Exchange) -> None:
    service, body = call.service, await read_body(call.request)
    name = service.check_model(body)
    turns = [_turn(message) for message in body.objects("messages", MAX_MESSAGES)]
    told = Told(name, "message")
    if not turns:
        return await call.json(told.loaded())  # how these clients ask for a model to be loaded; it is
    talk = Chat(turns, _settings(service, body), read_tools(body), _options(body))
    told.outcome = Outcome(talk.finder(service.starter.model))
    return await _answer(call, body, told, lambda: talk.requests(service, _constraint(body)))


async def generate(call: Exchange) -> None:
    service, body = call.service, await read_body(call.request)
    name = service.check_model(body)
    check_not_here(body, ("images", "suffix", "template", "context"))
    prompt, told, settings = body.text("prompt", ""), Told(name, "response"), _settings(service, body)
    if not prompt:
        return await call.json(told.loaded())
    raw, system = body.flag("raw"), body.text("system", "")

    def prepare() -> list[Request]:
        constraint = _constraint(body)
        if raw:
            ids = service.starter.model.tokenizer.encode_prompt(prompt)
            return settings.requests(check_room(service, ids, "prompt"), constraint=constraint, continues=True)
        turns = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
        return Chat(turns, settings, options=_options(body)).requests(service, constraint)

    return await _answer(call, body, told, prepare)


async def _answer(call: Exchange, body: Fields, told: Told, prepare: Any) -> None:
    wants_stream = body.flag("stream", True)
    with call.reserve(1) as reservation:
        requests = await call.service.prepared(prepare)
        if wants_stream:
            await call.stream(reservation, requests, told)
        else:
            await call.whole(reservation, requests, told.whole)


def _turn(message: Fields) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.choice("role", ROLES), "content": message.text("content", "")}
    if message.list("images", MAX_PARTS):
        raise message.refuse("images", "cannot be seen: this server's models read text only")
    calls = []
    for call in message.objects("tool_calls", MAX_PARTS):
        if (function := call.object("function")) is None:
            raise call.refuse("function", "is missing")
        given = function.values.get("arguments")
        arguments = parse_arguments(function) if isinstance(given, str) else (function.object("arguments") or Fields({})).values
        calls.append(call_turn(call.text("id", ""), function.text("name"), arguments))
    if calls:
        turn["tool_calls"] = calls
    if "tool_name" in message:
        turn["name"] = message.text("tool_name")
    return turn


def _settings(service: Service, body: Fields) -> Settings:
    """`options` by Ollama's names. A negative `num_predict` means no limit."""
    given = body.object("options") or Fields({})
    renamed = Fields({RENAMED.get(name, name): value for name, value in given.values.items() if name != "n"}, "options.")
    most = given.integer("num_predict", -2, MAX_TOKENS)
    return read_settings(renamed, service.defaults, logprobs=None, max_tokens=most if most and most > 0 else None)


def _options(body: Fields) -> dict[str, Any]:
    """Ollama's `think` is what Qwen's template calls enable_thinking."""
    return {"enable_thinking": body.flag("think")} if "think" in body else {}


def _constraint(body: Fields) -> Constraint | None:
    wanted = body.values.get("format")
    if wanted is None or wanted == "":
        return None
    if wanted == "json":
        return schema_constraint({"type": "object"})
    if not isinstance(wanted, dict):
        raise UserError('format is neither "json" nor a JSON schema')
    return schema_constraint(wanted)


class Told:
    """An answer as Ollama writes it: one JSON object a line. `place`: `message` of a chat, `response` of /api/generate."""

    content_type = "application/x-ndjson"
    keep_alive = ""

    def __init__(self, name: str, place: str) -> None:
        self._name = name
        self._place = place
        self.outcome = Outcome()

    def loaded(self) -> dict[str, Any]:
        return self._line(Delta("")) | {"done": True, "done_reason": "load"}

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        outcome = self.outcome.whole(answers[0])
        return self._line(Delta(outcome.text, tuple(outcome.calls))) | self._ending(answers[0])

    def piece(self, index: int, piece: Piece) -> str:
        return _ndjson(self._line(self.outcome.piece(piece)))

    def answer(self, index: int, answer: Answer) -> str:
        return _ndjson(self._line(self.outcome.end(answer)) | self._ending(answer))

    def end(self) -> str:
        return ""

    def error(self, error: ApiError) -> str:
        return _ndjson(Shape.OLLAMA.body(error))

    def _line(self, delta: Delta) -> dict[str, Any]:
        said: Any = delta.text
        if self._place == "message":
            said = {"role": "assistant", "content": delta.text}
            if delta.calls:
                said["tool_calls"] = [_call(call) for call in delta.calls]
        return {"model": self._name, "created_at": _now(), self._place: said, "done": False}

    def _ending(self, answer: Answer) -> dict[str, Any]:
        timings = answer.timings
        return {
            "done": True,
            "done_reason": "length" if self.outcome.reason is Reason.LENGTH else "stop",
            "total_duration": int(timings.total_s * NANOSECONDS),
            "load_duration": 0,
            "prompt_eval_count": timings.prompt_tokens,
            "prompt_eval_duration": int(timings.ttft_s * NANOSECONDS),
            "eval_count": timings.new_tokens,
            "eval_duration": int((timings.total_s - timings.ttft_s) * NANOSECONDS),
        }


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.call_id, "function": {"name": call.name, "arguments": json.loads(call.arguments)}}


def _ndjson(data: object) -> str:
    return compact(data) + "\n"


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


async def tags(call: Exchange) -> None:
    await call.json({"models": [_described(call.service, name) for name in call.service.names]})


async def version(call: Exchange) -> None:
    await call.json({"version": __version__})


async def show(call: Exchange) -> None:
    service, body = call.service, await read_body(call.request)
    name = service.check_model(body)
    family = _family(service)
    told = {
        "details": _described(service, name)["details"],
        "model_info": {"general.architecture": family, f"{family}.context_length": service.starter.ctx},
        "capabilities": ["completion", *(["tools"] if service.takes_tools else [])],
    }
    await call.json(told)


def _described(service: Service, name: str) -> dict[str, Any]:
    plan, family = service.starter.plan, _family(service)
    started = datetime.fromtimestamp(service.started_s, UTC).isoformat()
    details = {"parent_model": "", "format": "mdi", "family": family, "families": [family]}
    return {
        "name": name,
        "model": name,
        "modified_at": started,
        "size": sum(stage.bytes for stage in plan.stages),
        "digest": "",
        "details": details | {"parameter_size": "", "quantization_level": ""},
    }


def _family(service: Service) -> str:
    return service.starter.model.config.architecture.removesuffix("ForCausalLM").lower()
