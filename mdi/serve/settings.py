"""How to answer, as OpenAI's API says it, with vLLM's further fields."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from typing import Any

from mdi.engine.constraint import Constraint, Language
from mdi.engine.sampling import MAX_BIAS, MAX_BIASES, MAX_LOGPROBS, MAX_PENALTY, MAX_SEED, SamplingParams
from mdi.pipeline.api import Request
from mdi.serve.body import Fields

MAX_CHOICES = 64  # of one prompt; OpenAI allows 128, which no house has slots for
MAX_STOPS = 16  # OpenAI allows 4; each is looked for after every token
MAX_STOP_CHARS = 1024
MAX_TOKENS = 1 << 31
SEED_BITS = 32  # every JSON reader keeps it exactly


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a request says nothing. OpenAI's API documents 1 for both."""

    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How to answer one prompt, `n` times. `params` has no seed yet where `seed` is None: each answer draws one."""

    params: SamplingParams
    seed: int | None
    n: int = 1
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def requests(
        self, prompt_ids: tuple[int, ...], *, constraint: Constraint | None = None, continues: bool = False
    ) -> list[Request]:
        """One for each answer. The i-th of a seed has seed + i: one prompt is not answered the same way n times."""
        first = secrets.randbits(SEED_BITS) if self.seed is None else self.seed
        seeds = [(first + i) & MAX_SEED for i in range(self.n)]
        return [
            Request(
                prompt_ids,
                replace(self.params, seed=seed),
                self.max_tokens,
                self.stop,
                self.ignore_eos,
                continues=continues,
                constraint=constraint,
            )
            for seed in seeds
        ]


def read_settings(body: Fields, defaults: Defaults, *, logprobs: int | None, max_tokens: int | None) -> Settings:
    """The fields that chat and completions share. Raises ApiError."""
    params = SamplingParams(
        temperature=body.number("temperature", 0, 100, defaults.temperature),
        top_k=max(0, body.integer("top_k", -1, 1 << 31) or 0),  # vLLM's -1 is our 0
        top_p=_top_p(body, defaults.top_p),
        min_p=body.number("min_p", 0, 1, 0),
        repetition_penalty=body.number("repetition_penalty", 0.01, 100, 1),
        frequency_penalty=body.number("frequency_penalty", -MAX_PENALTY, MAX_PENALTY, 0),
        presence_penalty=body.number("presence_penalty", -MAX_PENALTY, MAX_PENALTY, 0),
        logit_bias=_logit_bias(body),
        logprobs=logprobs,
    )
    seed = body.integer("seed", -(1 << 63), MAX_SEED)
    n = body.integer("n", 1, MAX_CHOICES) or 1
    return Settings(
        params, None if seed is None else seed & MAX_SEED, n, max_tokens, read_stop(body, "stop"), body.flag("ignore_eos")
    )


def _top_p(body: Fields, default: float) -> float:
    value = body.number("top_p", 0, 1, default)
    if value == 0:
        raise body.refuse("top_p", "is 0, which leaves no token; temperature 0 takes the likeliest")
    return value


def read_stop(body: Fields, name: str) -> tuple[str, ...]:
    stops = body.texts(name, MAX_STOPS)
    if any(len(stop) > MAX_STOP_CHARS for stop in stops):
        raise body.refuse(name, f"holds a text of more than {MAX_STOP_CHARS} characters")
    return stops


def _logit_bias(body: Fields) -> tuple[tuple[int, float], ...]:
    biases = body.object("logit_bias")
    if biases is None:
        return ()
    if len(biases.values) > MAX_BIASES:
        raise body.refuse("logit_bias", f"names more than {MAX_BIASES} tokens")
    for token in biases.values:
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise body.refuse("logit_bias", f"holds {token[:20]!r}, which is no token id")
    pairs = {int(token): biases.number(token, -MAX_BIAS, MAX_BIAS, 0) for token in biases.values}
    return tuple(pairs.items())


def read_max_tokens(body: Fields, *names: str) -> int | None:
    """The first of the fields that is there."""
    return next((body.integer(name, 1, MAX_TOKENS) for name in names if name in body), None)


def read_top_logprobs(body: Fields, name: str) -> int:
    return body.integer(name, 0, MAX_LOGPROBS) or 0


def read_constraint(body: Fields) -> Constraint | None:
    """OpenAI's `response_format`, vLLM's `structured_outputs`. Compiling a schema may take a while: call it in a thread."""
    schema = _response_schema(body)
    outputs = body.object("structured_outputs")
    if outputs is None:
        return None if schema is None else schema_constraint(schema)
    given = [name for name in ("json", "regex", "choice", "grammar", "json_object", "structural_tag") if name in outputs]
    if schema is not None or len(given) != 1:
        raise body.refuse("structured_outputs", "is one of json and regex, and does not go with response_format")
    if given == ["regex"]:
        return Constraint(Language.REGEX, outputs.text("regex"))
    if given != ["json"]:
        raise outputs.refuse(given[0], "is not supported; json and regex are")
    value = outputs.values["json"]
    return Constraint(Language.JSON_SCHEMA, value) if isinstance(value, str) else schema_constraint(value)


def schema_constraint(schema: Any) -> Constraint:
    return Constraint(Language.JSON_SCHEMA, json.dumps(schema))


def _response_schema(body: Fields) -> Any:
    wanted = body.object("response_format")
    if wanted is None:
        return None
    match wanted.choice("type", ("text", "json_object", "json_schema")):
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            described = wanted.object("json_schema")
            if described is None or (schema := described.object("schema")) is None:
                raise wanted.refuse("json_schema", "has no schema")
            return schema.values
    return None
