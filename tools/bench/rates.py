"""Engines that take turns, and the ratios between them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tools.llama_cpp import LlamaCpp

Measure = Callable[[int, int], "Rates"]
T = TypeVar("T")
WARM_UP_TOKENS = 16  # enough that conversations that begin one after another overlap
RATES = ("decode_tokens_per_s", "prefill_tokens_per_s")


@dataclass(frozen=True, slots=True)
class Rates:
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(slots=True)
class Contender:
    """One engine in one set-up, and what each round measured."""

    name: str
    measure: Measure
    rounds: list[Rates] = field(default_factory=list)

    def median(self, what: str) -> float:
        return statistics.median(getattr(rates, what) for rates in self.rounds)

    def ratio(self, other: Contender, what: str) -> float:
        """Median of the ratios within a round: what slows a machine down slows neighbours alike."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(getattr(mine, what) / getattr(theirs, what) for mine, theirs in pairs)


def compete(contenders: Sequence[Contender], rounds: int, prompt_tokens: int, new_tokens: int) -> None:
    """Every contender once per round, in an order that turns, after one warm-up each."""
    for contender in contenders:
        contender.measure(prompt_tokens, min(new_tokens, WARM_UP_TOKENS))
    for i in range(rounds):
        for contender in turned(contenders, i):
            contender.rounds.append(contender.measure(prompt_tokens, new_tokens))


def turned(things: Sequence[T], i: int) -> list[T]:
    """The same in an order that begins `i` places later."""
    first = i % len(things)
    return [*things[first:], *things[:first]]


def llama(engine: LlamaCpp, sequences: int = 1) -> Measure:
    """As a contender; `decode_tokens_per_s` is that of all `sequences` together."""

    def measure(prompt_tokens: int, new_tokens: int) -> Rates:
        timing = engine.measure(prompt_tokens, new_tokens, sequences)
        return Rates(timing.prefill_tokens_per_s, timing.decode_tokens_per_s)

    return measure
