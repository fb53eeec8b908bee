"""What the parts make of their measurements. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement, or what a plan predicts for it. `together_tokens_per_s`: of several conversations, while all of them decode."""

    decode_tokens_per_s: float
    ttft_s: float
    together_tokens_per_s: float | None = None

    @property
    def decode_s(self) -> float:
        """Seconds per token of one conversation."""
        return 1 / self.decode_tokens_per_s


@dataclass(slots=True)
class Entrant:
    """One plan: what it promises, and what each round measured."""

    name: str
    split: str
    predicted: Figures | None = None
    rounds: list[Figures] = field(default_factory=list)

    def median(self, what: str) -> float:
        return statistics.median(getattr(figures, what) for figures in self.rounds)

    def ratio(self, other: Entrant, what: str) -> float:
        """Median of the ratios within a round: what slows a machine down slows neighbours alike."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(getattr(mine, what) / getattr(theirs, what) for mine, theirs in pairs)

    def error(self, what: str) -> float:
        """How far the prediction lies beside the measurement, as a share of the measurement: 0.1 is 10 % too high."""
        assert self.predicted is not None
        return float(getattr(self.predicted, what)) / self.median(what) - 1


def within(errors: Sequence[float], most: float) -> int:
    """How many errors are at most `most`, either way."""
    return sum(abs(error) <= most for error in errors)


def signed_percent(share: float) -> str:
    """+3.1 %"""
    return f"{100 * share:+.1f} %"


def verdict(kept: bool) -> str:
    return "met" if kept else "MISSED"
