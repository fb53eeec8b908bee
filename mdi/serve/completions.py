"""`/v1/completions`: text goes on as it is, without a chat template."""

from __future__ import annotations

import secrets
import time
from itertools import chain
from typing import Any

from mdi.model.tokenizer import Tokenizer
from mdi.pipeline.api import Answer, Piece, Request
from mdi.serve.answers import check_room
from mdi.serve.body import Fields, read_body
from mdi.serve.chat import check_not_here, read_stream
from mdi.serve.errors import ApiError, Shape, refused
from mdi.serve.exchange import Exchange
from mdi.serve.outcome import Outcome
from mdi.serve.service import Service
from mdi.serve.settings import Settings, read_constraint, read_max_tokens, read_settings, read_top_logprobs
from mdi.serve.streaming import SSE, sse
from mdi.serve.usage import completion_logprobs, usage

DEFAULT_MAX_TOKENS = 16  # as OpenAI's API documents
MAX_PROMPTS = 64
NOT_HERE = ("suffix", "echo", "prompt_logprobs", "use_beam_search", "prompt_embeds")


async def completions(call: Exchange) -> None:
    service, body = call.service, await read_body(call.request)
    name = service.check_model(body)
    check_not_here(body, NOT_HERE)
    settings, prompts = _settings(service, body), _prompts(service, body)
    wants_stream, wants_usage = read_stream(body)

    def prepare() -> list[Request]:
        constraint = read_constraint(body)
        ids = [check_room(service, _ids(service, prompt), "prompt") for prompt in prompts]
        return list(chain.from_iterable(settings.requests(each, constraint=constraint, continues=True) for each in ids))

    with call.reserve(len(prompts) * settings.n) as reservation:
        requests = await service.prepared(prepare)
        told = Told(name, service.starter.model.tokenizer, len(requests), settings, wants_usage=wants_usage)
        if wants_stream:
            await call.stream(reservation, requests, told)
        else:
            await call.whole(reservation, requests, told.whole)


def _settings(service: Service, body: Fields) -> Settings:
    logprobs = read_top_logprobs(body, "logprobs") if "logprobs" in body else None
    max_tokens = read_max_tokens(body, "max_tokens") or DEFAULT_MAX_TOKENS
    settings = read_settings(body, service.defaults, logprobs=logprobs, max_tokens=max_tokens)
    if (body.integer("best_of", 1, 1 << 31) or settings.n) != settings.n:
        raise body.refuse("best_of", "is only supported where it equals n")
    return settings


def _prompts(service: Service, body: Fields) -> list[str | list[int]]:
    """One or several texts, or token ids of one or several texts. Raises ApiError."""
    given = body.values.get("prompt")
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or not 0 < len(given) <= MAX_PROMPTS:
        raise body.refuse("prompt", f"is not a text, a list of token ids, or a list of at most {MAX_PROMPTS} of them")
    return [prompt if isinstance(prompt, str) else check_ids(service, prompt, "prompt") for prompt in given]


def check_ids(service: Service, ids: object, name: str) -> list[int]:
    """Token ids that the model has. Raises ApiError."""
    size = service.starter.model.config.vocab_size
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < size for token in ids):
        raise refused(name, f"{name} is neither text nor a list of token ids from 0 to {size - 1}")
    return ids


def _ids(service: Service, prompt: str | list[int]) -> list[int]:
    return service.starter.model.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt


class Told:
    """Answers as OpenAI's older API writes them: whole, and as a Dialect."""

    content_type = SSE
    keep_alive = ": still working\n\n"

    def __init__(self, name: str, tokenizer: Tokenizer, n_answers: int, settings: Settings, *, wants_usage: bool) -> None:
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        self._tokenizer = tokenizer
        self._n = settings.n
        self._outcomes = [Outcome() for _ in range(n_answers)]
        self._offsets = [0] * n_answers
        self._wants_usage = wants_usage

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            logprobs = completion_logprobs(answer.logprobs, self._tokenizer, 0)[0] if answer.logprobs else None
            choices.append(_choice(index, answer.text, logprobs, self._outcomes[index].whole(answer).reason))
        return {**self._head, "choices": choices, "usage": usage(answers, self._n)}

    def piece(self, index: int, piece: Piece) -> str:
        delta, logprobs = self._outcomes[index].piece(piece), None
        if delta.logprobs is not None:
            logprobs, self._offsets[index] = completion_logprobs([delta.logprobs], self._tokenizer, self._offsets[index])
        return self._chunk([_choice(index, delta.text, logprobs, None)])

    def answer(self, index: int, answer: Answer) -> str:
        self._outcomes[index].end(answer)
        return self._chunk([_choice(index, "", None, self._outcomes[index].reason)])

    def end(self) -> str:
        answers = [outcome.answer for outcome in self._outcomes if outcome.answer is not None]
        told = self._chunk([], usage(answers, self._n)) if self._wants_usage else ""
        return told + "data: [DONE]\n\n"

    def error(self, error: ApiError) -> str:
        return sse(Shape.OPENAI.body(error)) + "data: [DONE]\n\n"

    def _chunk(self, choices: list[dict[str, Any]], used: dict[str, Any] | None = None) -> str:
        chunk = {**self._head, "choices": choices}
        return sse(chunk | {"usage": used} if self._wants_usage else chunk)


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
