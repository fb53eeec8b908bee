"""A plan in words, tables and bars: plain text, or rows for whoever draws better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mdi.plan.baselines import alternatives
from mdi.plan.costs import Problem
from mdi.plan.forecast import Forecast
from mdi.plan.plan import Plan
from mdi.plan.reason import why
from mdi.plan.text import binary_bytes, milliseconds
from mdi.plan.wishes import Pin


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One stage of a plan. `hop_s` is the way to the next node; None where there is no hop."""

    name: str
    first_block: int | None  # None without blocks
    last_block: int | None
    share: float  # of the blocks, 0 to 1
    used_bytes: int
    offered_bytes: int
    stage_s: float
    hop_s: float | None
    chunk_s: float  # the same stage for a chunk of a prompt

    @property
    def blocks_text(self) -> str:
        """none, 5, or 0–3."""
        if self.first_block is None:
            return "none"
        return str(self.first_block) if self.first_block == self.last_block else f"{self.first_block}–{self.last_block}"

    def cells(self) -> tuple[str, ...]:
        return (
            self.name,
            self.blocks_text,
            f"{self.share:.0%}",
            f"{binary_bytes(self.used_bytes)} of {binary_bytes(self.offered_bytes)}",
            milliseconds(self.chunk_s),
            milliseconds(self.stage_s),
            "" if self.hop_s is None else milliseconds(self.hop_s),
        )


MOST_COUNTS = 10  # of a split that are written out
CONVERSATIONS = (1, 2, 4, 8, 16)
LONG_CONTEXT = 4096
NODE_HEADINGS = ("node", "blocks", "share", "memory", "prompt chunk", "token", "hop on")
COMPARISON_HEADINGS = ("plan", "blocks", "one conversation", "ring full", "first token")


def node_rows(problem: Problem, plan: Plan) -> list[NodeRow]:
    """One row for each stage, in ring order."""
    hops_s: Sequence[float | None] = plan.prediction.hop_decode_s or [None]
    return [
        NodeRow(
            name=stage.name,
            first_block=stage.blocks.start if len(stage.blocks) else None,
            last_block=stage.blocks.stop - 1 if len(stage.blocks) else None,
            share=len(stage.blocks) / plan.n_blocks,
            used_bytes=stage.bytes,
            offered_bytes=problem.nodes[problem.index(stage.node_id)].memory_bytes,
            stage_s=stage_s,
            hop_s=hop_s,
            chunk_s=chunk_s,
        )
        for stage, stage_s, hop_s, chunk_s in zip(
            plan.stages, plan.prediction.stage_decode_s, hops_s, plan.prediction.stage_prefill_s, strict=True
        )
    ]


def comparison(plan: Plan, others: Mapping[str, Plan | None]) -> list[tuple[str, ...]]:
    """Rows under COMPARISON_HEADINGS: this plan, then the others."""
    return [_compared("this plan", plan), *(_compared(name, other) for name, other in others.items())]


def _compared(name: str, plan: Plan | None) -> tuple[str, ...]:
    if plan is None:
        return (name, "does not fit", "", "", "")
    times = plan.prediction
    split = split_text(plan.counts)
    rates = (f"{times.decode_tokens_per_s:.1f} tok/s", f"{times.throughput_tokens_per_s:.1f} tok/s")
    return (name, split, *rates, milliseconds(times.ttft_s))


def split_text(counts: Sequence[int]) -> str:
    """4,6,6; the first ones of many."""
    if len(counts) <= MOST_COUNTS:
        return ",".join(str(n) for n in counts)
    return ",".join(str(n) for n in counts[: MOST_COUNTS - 2]) + f",… ({len(counts)} stages)"


def optimality(plan: Plan) -> str:
    """How good the plan is proven to be, in a sentence; empty for a split that was given."""
    if plan.gap is None or plan.bound_s is None:
        return ""
    if plan.gap == 0:
        return "Proven: no other choice, order or split of these devices is better."
    return f"Proven: no plan is more than {plan.gap:.1%} better (none takes less than {milliseconds(plan.bound_s)})."


def load_rows(problem: Problem, plan: Plan) -> list[tuple[str, ...]]:
    """Rows under `load_headings`: how conversations share the ring, with the load's context and with a long one."""
    forecast = Forecast(problem, plan.node_ids, plan.counts)
    context = problem.load.context_tokens
    return [
        (
            str(n),
            f"{forecast.tokens_per_s(n, context):.1f} tok/s",
            f"{forecast.tokens_per_s(n, long_context(problem)):.1f} tok/s",
        )
        for n in CONVERSATIONS
    ]


def long_context(problem: Problem) -> int:
    """LONG_CONTEXT, or as much as is planned for."""
    return min(LONG_CONTEXT, problem.model.ctx)


def load_headings(problem: Problem) -> tuple[str, ...]:
    return ("conversations", f"with {problem.load.context_tokens} tokens each", f"with {long_context(problem)}")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first one left, the others right."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    text = []
    for first, *rest in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def bars(plan: Plan, width: int = 40) -> str:
    """A line for each stage: where its blocks lie among all of them, and how long it takes."""
    names = max(len(stage.name) for stage in plan.stages)
    lines = []
    for stage, stage_s in zip(plan.stages, plan.prediction.stage_decode_s, strict=True):
        start, stop = (edge * width // plan.n_blocks for edge in (stage.blocks.start, stage.blocks.stop))
        if len(stage.blocks):
            start = min(start, width - 1)
            stop = max(stop, start + 1)  # a stage is never invisible
        drawn = "░" * start + "█" * (stop - start) + "░" * (width - stop)
        lines.append(f"{stage.name.ljust(names)} {drawn} {milliseconds(stage_s)}")
    return "\n".join(lines)


def explain(problem: Problem, plan: Plan, pins: Sequence[Pin] = ()) -> str:
    """Everything: the reason, the stages, what bounds the plan, several conversations, and the alternatives."""
    times = plan.prediction
    stages_s, hops_s = sum(times.stage_decode_s), sum(times.hop_decode_s)
    summary = (
        f"{times.decode_tokens_per_s:.1f} tok/s for one conversation, {times.throughput_tokens_per_s:.1f} tok/s with "
        f"{times.conversations_to_fill} or more; first token after {milliseconds(times.ttft_s)} "
        f"({problem.model.prompt_tokens} prompt tokens).\n"
        f"A token takes {milliseconds(times.decode_step_s)}: {milliseconds(stages_s)} of stages and "
        f"{milliseconds(hops_s)} of hops. Bounded by {times.bottleneck}.\n{optimality(plan)}"
    ).rstrip()
    parts = [
        why(problem, plan, pins),
        bars(plan),
        table(NODE_HEADINGS, [row.cells() for row in node_rows(problem, plan)]),
        summary,
        table(load_headings(problem), load_rows(problem, plan)),
        table(COMPARISON_HEADINGS, comparison(plan, alternatives(problem))),
    ]
    return "\n\n".join(parts)
