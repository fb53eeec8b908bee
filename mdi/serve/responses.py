"""`/v1/responses`: OpenAI's newer API, for one answer at a time. Nothing is stored, so nothing can be referred to later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mdi.serve.body import Fields, read_body
from mdi.serve.chat import Chat, check_not_here
from mdi.serve.exchange import Exchange
from mdi.serve.messages import MAX_MESSAGES, ROLES, call_turn, parse_arguments, read_content
from mdi.serve.outcome import Outcome
from mdi.serve.responses_told import Told
from mdi.serve.service import Service
from mdi.serve.settings import read_constraint, read_max_tokens, read_settings, read_top_logprobs
from mdi.serve.tools import MAX_TOOLS, Tools, choice_of, chosen

NOT_HERE = ("previous_response_id", "conversation", "background", "prompt", "max_tool_calls")


async def responses(call: Exchange) -> None:
    service, body = call.service, await read_body(call.request)
    name = service.check_model(body)
    check_not_here(body, NOT_HERE)
    chat, wants_stream = _chat(service, body), body.flag("stream")
    with call.reserve(1) as reservation:
        requests = await service.prepared(lambda: chat.requests(service, read_constraint(_formatted(body))))
        outcome = Outcome(chat.finder(service.starter.model))
        told = Told(_head(body, name, chat), outcome, service.starter.model.tokenizer)
        if wants_stream:
            await call.stream(reservation, requests, told)
        else:
            await call.whole(reservation, requests, told.whole)


def _chat(service: Service, body: Fields) -> Chat:
    settings = read_settings(
        body,
        service.defaults,
        logprobs=read_top_logprobs(body, "top_logprobs") if _wants_logprobs(body) else None,
        max_tokens=read_max_tokens(body, "max_output_tokens"),
    )
    turns = list(_merged(_turns(body)))
    if not turns:
        raise body.refuse("input", "is missing or empty")
    if "instructions" in body:
        turns.insert(0, {"role": "system", "content": body.text("instructions")})
    return Chat(turns, replace(settings, n=1), _tools(body))


def _wants_logprobs(body: Fields) -> bool:
    return "message.output_text.logprobs" in body.list("include", MAX_TOOLS)


def _formatted(body: Fields) -> Fields:
    """`text.format` as the older API's response_format, which has the schema one level lower, and vLLM's field as it is."""
    text = body.object("text")
    wanted = None if text is None else text.object("format")
    given: dict[str, Any] = {"structured_outputs": body.values.get("structured_outputs")}
    if wanted is not None:
        kind = wanted.choice("type", ("text", "json_object", "json_schema"))
        given["response_format"] = {"type": kind, "json_schema": {"schema": wanted.values.get("schema")}}
    return Fields(given)


def _turns(body: Fields) -> Iterator[dict[str, Any]]:
    if isinstance(body.values.get("input"), str):
        yield {"role": "user", "content": body.text("input")}
        return
    for item in body.objects("input", MAX_MESSAGES):
        match kind := item.text("type", "message"):
            case "message":
                role = item.choice("role", ROLES)
                yield {"role": "system" if role == "developer" else role, "content": read_content(item)}
            case "function_call":
                made = call_turn(item.text("call_id"), item.text("name"), parse_arguments(item))
                yield {"role": "assistant", "content": "", "tool_calls": [made]}
            case "function_call_output":
                yield {"role": "tool", "tool_call_id": item.text("call_id"), "content": read_content(item, "output")}
            case _ if kind != "reasoning":  # of earlier answers: no model here wrote it, and none is shown it
                raise item.refuse("type", f"is {kind[:40]!r}, which is not supported")


def _merged(turns: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Words and calls that follow each other belong to one turn of the assistant."""
    last: dict[str, Any] | None = None
    for turn in turns:
        if last is not None and "tool_calls" in turn and last["role"] == "assistant":
            last["tool_calls"] = [*last.get("tool_calls", []), *turn["tool_calls"]]
            continue
        if last is not None:
            yield last
        last = turn
    if last is not None:
        yield last


def _tools(body: Fields) -> Tools:
    offered = []
    for tool in body.objects("tools", MAX_TOOLS):
        tool.choice("type", ("function",))
        parameters = tool.object("parameters")
        function = {"name": tool.text("name"), "description": tool.text("description", "")}
        offered.append({"type": "function", "function": function | {"parameters": parameters.values if parameters else {}}})
    return chosen(body, tuple(offered), choice_of(body))


def _head(body: Fields, name: str, chat: Chat) -> dict[str, Any]:
    """What the answer repeats of the question."""
    params = chat.settings.params
    return {
        "object": "response",
        "created_at": int(time.time()),
        "model": name,
        "instructions": body.values.get("instructions"),
        "max_output_tokens": chat.settings.max_tokens,
        "metadata": body.values.get("metadata") or {},
        "parallel_tool_calls": body.flag("parallel_tool_calls", True),
        "previous_response_id": None,
        "store": False,
        "temperature": params.temperature,
        "text": body.values.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.values.get("tool_choice") or "auto",
        "tools": body.values.get("tools") or [],
        "top_p": params.top_p,
        "truncation": "disabled",
    }
