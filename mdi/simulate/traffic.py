"""Who asks what when."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mdi.errors import UserError

MAX_CONVERSATIONS = 10_000
MAX_TOKENS = 1 << 20  # of a prompt or an answer; the context bounds them further


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is asked for at `arrival_s`."""

    arrival_s: float
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """`conversations` requests: all at once with `per_s` 0, else that many a second on average, at random (Poisson).

    Lengths are drawn evenly from `1 - spread` to `1 + spread` times the given ones.
    """

    conversations: int
    prompt_tokens: int
    answer_tokens: int
    per_s: float = 0.0
    spread: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.conversations <= MAX_CONVERSATIONS:
            raise UserError(
                f"{self.conversations} conversations are outside 1 to {MAX_CONVERSATIONS}", hint="see --conversations"
            )
        for name in ("prompt_tokens", "answer_tokens"):
            if not 1 <= getattr(self, name) <= MAX_TOKENS:
                raise UserError(
                    f"{name} is {getattr(self, name)}, outside 1 to {MAX_TOKENS}", hint=f"see --{name.replace('_', '-')}"
                )
        if not 0 <= self.per_s < 1e6 or not 0 <= self.spread < 1:
            raise UserError(
                f"{self.per_s:g} conversations a second, lengths {self.spread:g} apart, are not possible", hint="see --rate"
            )

    def requests(self, ctx: int) -> list[Request]:
        """In the order of arrival; each with its answer fits `ctx` tokens."""
        draw, now_s, found = random.Random(self.seed), 0.0, []
        for _ in range(self.conversations):
            if self.per_s:
                now_s += draw.expovariate(self.per_s)
            prompt, answer = (self._length(draw, tokens) for tokens in (self.prompt_tokens, self.answer_tokens))
            prompt = min(prompt, ctx - 1)
            found.append(Request(now_s, prompt, min(answer, ctx - prompt)))
        return found

    def _length(self, draw: random.Random, tokens: int) -> int:
        return max(1, round(tokens * draw.uniform(1 - self.spread, 1 + self.spread)))
