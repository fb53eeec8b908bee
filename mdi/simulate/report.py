"""What came of a simulation, in numbers and words. Times are virtual seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mdi.plan.explain import split_text, table
from mdi.plan.text import binary_bytes, counted, milliseconds
from mdi.simulate.run import Outcome, Recovery

PERCENTILES = (50, 90, 99)
MOST_ROWS = 24  # stages in the table: the busiest ones of many


@dataclass(frozen=True, slots=True)
class Report:
    """`ttft_s` and `pause_s` (between two tokens of a conversation, its longest) by percentile; `idle` by node name, 0 to 1."""

    conversations: int
    finished: int
    tokens: int
    seconds: float
    tokens_per_s: float
    tokens_per_s_of_one: float | None
    ttft_s: dict[str, float]
    pause_s: dict[str, float]
    idle: dict[str, float]
    hop_idle: list[float]
    unused_nodes: int
    events: int


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def report(outcome: Outcome, n_nodes: int) -> Report:
    """`n_nodes` is how many the cluster has."""
    seconds = outcome.end_s - min(each.request.arrival_s for each in outcome.conversations) if outcome.end_s else 0.0
    tokens = sum(each.n_tokens for each in outcome.conversations)
    firsts = [each.ttft_s for each in outcome.conversations if each.ttft_s is not None]
    pauses = [each.longest_pause_s for each in outcome.conversations if each.n_tokens > 1]
    rates = [
        (each.n_tokens - 1) / (each.last_s - each.first_s)
        for each in outcome.conversations
        if each.first_s is not None and each.last_s is not None and each.last_s > each.first_s
    ]
    return Report(
        conversations=len(outcome.conversations),
        finished=sum(not each.failed for each in outcome.conversations),
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds if seconds else 0.0,
        tokens_per_s_of_one=percentile(rates, 50) if rates else None,
        ttft_s={f"p{p}": percentile(firsts, p) for p in PERCENTILES} if firsts else {},
        pause_s={f"p{p}": percentile(pauses, p) for p in PERCENTILES} if pauses else {},
        idle={name: _idle(busy_s, seconds) for name, busy_s in outcome.busy_s.items()},
        hop_idle=[_idle(busy_s, seconds) for busy_s in outcome.hop_busy_s],
        unused_nodes=n_nodes - len(outcome.busy_s),
        events=outcome.events,
    )


def _idle(busy_s: float, seconds: float) -> float:
    return min(1.0, max(0.0, 1 - busy_s / seconds)) if seconds else 1.0


def report_json(told: Report, outcome: Outcome) -> dict[str, Any]:
    """What `mdi simulate --json` prints, beside the plan."""
    recoveries = [
        {
            "node": each.death.node,
            "at_s": each.death.at_s,
            "was_used": each.was_used,
            "problem": each.problem,
            "sent_bytes": each.sent_bytes,
            "ready_s": each.ready_s,
            "plan": each.plan and each.plan.to_json(),
        }
        for each in outcome.recoveries
    ]
    return {**asdict(told), "recoveries": recoveries}


def report_text(told: Report, outcome: Outcome) -> str:
    """A few lines, a table of the stages, and a sentence for each death."""
    of = "" if told.finished == told.conversations else f"; {told.conversations - told.finished} were not finished"
    lines = [
        f"{counted(told.conversations, 'conversation')}, {counted(told.tokens, 'token')} in {told.seconds:.1f} s: "
        f"{told.tokens_per_s:.1f} tok/s together{of}."
    ]
    if told.tokens_per_s_of_one is not None:
        lines.append(f"One conversation runs at {told.tokens_per_s_of_one:.1f} tok/s (median).")
    headings = ("", *(f"p{p}" for p in PERCENTILES))
    rows = [(name, *(milliseconds(value) for value in values.values())) for name, values in _named(told) if values]
    parts = ["\n".join(lines)]
    if rows:
        parts.append(table(headings, rows))
    parts.append(_stages(told))
    parts += [_recovery(each) for each in outcome.recoveries]
    return "\n\n".join(parts)


def _named(told: Report) -> tuple[tuple[str, dict[str, float]], ...]:
    return (("first token after", told.ttft_s), ("longest pause within an answer", told.pause_s))


def _stages(told: Report) -> str:
    busiest = sorted(told.idle.items(), key=lambda item: item[1])
    shown = dict(busiest[:MOST_ROWS])
    rows = [(name, f"{idle:.0%}") for name, idle in told.idle.items() if name in shown]
    text = table(("stage", "idle"), rows)
    if len(busiest) > MOST_ROWS:
        text += f"\nand {counted(len(busiest) - MOST_ROWS, 'stage')} that are idler"
    if told.hop_idle:
        text += f"\nThe busiest hop is idle for {min(told.hop_idle):.0%} of the time."
    if told.unused_nodes:
        text += (
            f"\n{counted(told.unused_nodes, 'node')} of the cluster {'has' if told.unused_nodes == 1 else 'have'} no blocks."
        )
    return text


def _recovery(each: Recovery) -> str:
    name, at_s = each.death.node, each.death.at_s
    if not each.was_used:
        return f"{name} died at {at_s:g} s; it had no blocks."
    if each.plan is None:
        return f"{name} died at {at_s:g} s, and that was the end: {each.problem}."
    ring = f"A ring of {counted(len(each.plan.stages), 'device')} ({split_text(each.plan.counts)}) was up {each.ready_s - at_s:.1f} s later"
    sent = f"{binary_bytes(each.sent_bytes)} of weights having been sent"
    return f"{name} died at {at_s:g} s. {ring}, {sent}; answers went on from their tokens."
