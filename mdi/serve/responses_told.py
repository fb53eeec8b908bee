"""An answer as `/v1/responses` writes it: whole, and as a stream of numbered events."""

from __future__ import annotations

import secrets
from typing import Any

from mdi.engine.logits import TokenLogprobs
from mdi.model.tokenizer import Tokenizer
from mdi.pipeline.api import Answer, Piece
from mdi.serve.errors import ApiError
from mdi.serve.outcome import Delta, Outcome, Reason
from mdi.serve.streaming import SSE, sse
from mdi.serve.tools import ToolCall
from mdi.serve.usage import chat_logprobs


class Told:
    """One response. Its items are one message, if there are words, and one item for each call."""

    content_type = SSE
    keep_alive = ": still working\n\n"

    def __init__(self, head: dict[str, Any], outcome: Outcome, tokenizer: Tokenizer) -> None:
        self._head = {"id": f"resp_{secrets.token_hex(16)}", **head}
        self._outcome = outcome
        self._tokenizer = tokenizer
        self._output: list[dict[str, Any]] = []
        self._message: dict[str, Any] | None = None  # while its words come
        self._logprobs: list[TokenLogprobs] = []
        self._number = -1
        self._begun = False

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        outcome = self._outcome.whole(answers[0])
        if outcome.text or not outcome.calls:
            self._output.append(_message(_new_id("msg"), outcome.text, self._told(answers[0].logprobs)))
        self._output += [_call(call) for call in outcome.calls]
        return self._response(answers[0])

    def piece(self, index: int, piece: Piece) -> str:
        return self._start() + self._delta(self._outcome.piece(piece))

    def answer(self, index: int, answer: Answer) -> str:
        told = self._start() + self._delta(self._outcome.end(answer))
        if not self._output and self._message is None:
            told += self._begin_message()
        told += self._end_message()
        response = self._response(answer)
        return told + self._event(f"response.{response['status']}", response=response)

    def end(self) -> str:
        return ""

    def error(self, error: ApiError) -> str:
        told = {"code": error.code or "server_error", "message": str(error)}
        failed = self._response(None) | {"status": "failed", "error": told}
        return self._event("error", **told, param=error.param) + self._event("response.failed", response=failed)

    def _start(self) -> str:
        if self._begun:
            return ""
        self._begun = True
        response = self._response(None)
        return self._event("response.created", response=response) + self._event("response.in_progress", response=response)

    def _delta(self, delta: Delta) -> str:
        told = ""
        if delta.text or (self._message is not None and delta.is_token and not delta.calls):
            told += self._begin_message() if self._message is None else ""
            logprobs = [] if delta.logprobs is None else [delta.logprobs]
            self._logprobs += logprobs
            told += self._part_event("response.output_text.delta", delta=delta.text, logprobs=self._told(logprobs))
        for call in delta.calls:
            told += self._end_message() + self._call_events(call)
        return told

    def _begin_message(self) -> str:
        self._message = _message(_new_id("msg"), "", []) | {"status": "in_progress", "content": []}
        told = self._event("response.output_item.added", output_index=len(self._output), item=self._message)
        return told + self._part_event("response.content_part.added", part=_part("", []))

    def _end_message(self) -> str:
        if self._message is None:
            return ""
        text, logprobs = self._said(), self._told(self._logprobs)
        told = self._part_event("response.output_text.done", text=text, logprobs=logprobs)
        told += self._part_event("response.content_part.done", part=_part(text, logprobs))
        item = _message(self._message["id"], text, logprobs)
        told += self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._message = None
        return told

    def _said(self) -> str:
        """All words so far: calls come after them, and what comes after a call is a message of its own."""
        already = sum(len(item["content"][0]["text"]) for item in self._output if item["type"] == "message")
        return self._outcome.text[already:]

    def _call_events(self, call: ToolCall) -> str:
        index, item = len(self._output), _call(call)
        empty = item | {"arguments": "", "status": "in_progress"}
        about = {"item_id": item["id"], "output_index": index}
        self._output.append(item)
        return (
            self._event("response.output_item.added", output_index=index, item=empty)
            + self._event("response.function_call_arguments.delta", **about, delta=call.arguments)
            + self._event("response.function_call_arguments.done", **about, name=call.name, arguments=call.arguments)
            + self._event("response.output_item.done", output_index=index, item=item)
        )

    def _part_event(self, kind: str, **told: Any) -> str:
        assert self._message is not None
        return self._event(kind, item_id=self._message["id"], output_index=len(self._output), content_index=0, **told)

    def _event(self, kind: str, **told: Any) -> str:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number, **told}, kind)

    def _told(self, logprobs: list[TokenLogprobs] | tuple[TokenLogprobs, ...]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = chat_logprobs(logprobs, self._tokenizer)["content"]
        return found

    def _response(self, answer: Answer | None) -> dict[str, Any]:
        """`answer` None: it is not there yet."""
        status, incomplete = "in_progress", None
        if answer is not None:
            cut = self._outcome.reason is Reason.LENGTH
            status, incomplete = ("incomplete", {"reason": "max_output_tokens"}) if cut else ("completed", None)
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "output": list(self._output),
            "usage": None if answer is None else _usage(answer),
        }


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _message(item_id: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "message", "id": item_id, "status": "completed", "role": "assistant", "content": [_part(text, logprobs)]}


def _call(call: ToolCall) -> dict[str, Any]:
    told = {"call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    return {"type": "function_call", "id": _new_id("fc"), "status": "completed", **told}


def _usage(answer: Answer) -> dict[str, Any]:
    timings = answer.timings
    return {
        "input_tokens": timings.prompt_tokens,
        "input_tokens_details": {"cached_tokens": timings.reused_tokens},
        "output_tokens": timings.new_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": timings.prompt_tokens + timings.new_tokens,
    }
