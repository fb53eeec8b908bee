"""What one ring does with a model: the first token, tokens per second for any number of conversations, and bytes by node.

The formulas, with their units and where their numbers come from, are in docs/planning.md. Memory limits are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mdi.errors import InternalError, LinkError, UserError
from mdi.plan.costs import Problem

STEPS_BEYOND_STAGES = 1  # chunks of one prompt that follow each other through the ring, beyond the one in each stage
MOST_STEPS = 32  # enough to fill a ring of 31 stages; the last node must have room for all their results


def steps_in_flight(n_stages: int) -> int:
    """How many steps a starter has on their way at most, before a result is back."""
    return min(n_stages + STEPS_BEYOND_STAGES, MOST_STEPS) if n_stages > 1 else 1


@dataclass(frozen=True, slots=True)
class Forecast:
    """The ring of the nodes `order` (ids, the starter first) with `counts` blocks each.

    Raises LinkError where a hop's link is UNREACHABLE, InternalError for anything that is not a ring of all the blocks.
    """

    problem: Problem
    order: tuple[str, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_ring(self.problem, self.order, self.counts)
        for sender, receiver in self.hops:
            if self.problem.links[sender, receiver].decode_s == math.inf:
                here, there = (self.problem.nodes[self.problem.index(node_id)].name for node_id in (sender, receiver))
                raise LinkError(f"{here} cannot reach {there}", hint="put them on one network, or choose another order")

    @property
    def hops(self) -> list[tuple[str, str]]:
        """Stage `i` is followed by hop `i`, the last one back to the starter; a starter alone has none."""
        return list(pairwise([*self.order, self.order[0]])) if len(self.order) > 1 else []

    @property
    def max_in_flight(self) -> int:
        """How many steps the starter has on their way at most."""
        return steps_in_flight(len(self.order))

    def node_bytes(self) -> dict[str, int]:
        """What each node needs, by id: weights, KV of all slots, and on the starter embedding and head."""
        work = zip(self.order, self.counts, strict=True)
        return {node_id: self.problem.bytes_needed(self.problem.index(node_id), n) for node_id, n in work}

    def decode_parts_s(self, rows: float, context_tokens: float) -> tuple[list[float], list[float]]:
        """(stages, hops) of a step with a row of each of `rows` conversations, the head in the starter's stage."""
        stages_s = [
            self.problem.decode_time(index, rows, context_tokens).seconds(n)
            for index, n in zip(self._indices, self.counts, strict=True)
        ]
        stages_s[0] += self.problem.head_s(rows)
        return stages_s, [self.problem.hop_s(*hop, rows) for hop in self.hops]

    def prefill_parts_s(self, rows: float, context_tokens: float) -> tuple[list[float], list[float]]:
        """(stages, hops) of one chunk. Only wanted rows come back, so the last hop is that of one row at most; the head is not in it."""
        stages_s = [
            self.problem.prefill_time(index, rows, context_tokens).seconds(n)
            for index, n in zip(self._indices, self.counts, strict=True)
        ]
        hops = self.hops
        return stages_s, [self.problem.hop_s(*hop, rows if hop is not hops[-1] else 1) for hop in hops]

    def decode_step_s(self, rows: float = 1, context_tokens: float | None = None) -> float:
        """All stages and hops, one after another."""
        stages_s, hops_s = self.decode_parts_s(rows, self._context(context_tokens))
        return sum(stages_s) + sum(hops_s)

    def tokens_per_s(self, conversations: int = 1, context_tokens: float | None = None) -> float:
        """Of all conversations together, in steps of `rows_per_step`."""
        rows = self.rows_per_step(conversations, context_tokens)
        return conversations / self._round_s(conversations, rows, self._context(context_tokens))

    def rows_per_step(self, conversations: int, context_tokens: float | None = None) -> int:
        """How many of the conversations shall share a step, so that all together get the most tokens: with few, several steps are on
        their way and more places work at the same time; with many, each place has fewer steps to do."""
        if conversations < 1:
            raise UserError(f"{conversations} conversations give no tokens", hint="choose at least 1")
        context = self._context(context_tokens)
        choices = {math.ceil(conversations / steps) for steps in range(1, min(conversations, self.max_in_flight) + 1)}
        return min(sorted(choices, reverse=True), key=lambda rows: self._round_s(conversations, rows, context))

    def _round_s(self, conversations: int, rows: int, context: float) -> float:
        """Until each conversation has one more token: a step is no sooner back than the ring takes, and no place passes the steps of a
        round faster than one after another."""
        whole, rest = divmod(conversations, rows)
        places_s = [part for parts in self.decode_parts_s(rows, context) for part in parts]
        load_s = [whole * part for part in places_s]
        if rest:
            rest_s = [part for parts in self.decode_parts_s(rest, context) for part in parts]
            load_s = [load + part for load, part in zip(load_s, rest_s, strict=True)]
        return max(sum(places_s), *load_s)

    def ttft_s(self, prompt_tokens: int | None = None) -> float:
        """From the request to the first token, on an idle ring.

        Chunks follow each other: each place takes a chunk when the chunk has come and the one before has left, and the starter sends
        one only while no more than `max_in_flight` are on their way.
        """
        prompt_tokens = self.problem.model.prompt_tokens if prompt_tokens is None else prompt_tokens
        if prompt_tokens < 1:
            raise UserError(f"a prompt of {prompt_tokens} tokens is not possible", hint="choose at least 1")
        free_s: list[float] = []  # when each place is done with the chunk before
        back_s: list[float] = []  # when each chunk's result is back
        context = 0
        for rows in self.problem.model.chunk_sizes(prompt_tokens):
            stages_s, hops_s = self.prefill_parts_s(rows, context)
            parts_s = [part for pair in zip(stages_s, hops_s, strict=True) for part in pair] if hops_s else stages_s
            free_s = free_s or [0.0] * len(parts_s)
            now_s = back_s[-self.max_in_flight] if len(back_s) >= self.max_in_flight else 0.0
            for place, part_s in enumerate(parts_s):
                now_s = max(now_s, free_s[place]) + part_s
                free_s[place] = now_s
            back_s.append(now_s)
            context += rows
        return back_s[-1] + self.problem.starter.prefill_s

    def _context(self, context_tokens: float | None) -> float:
        return self.problem.load.context_tokens if context_tokens is None else context_tokens

    @property
    def _indices(self) -> list[int]:
        return [self.problem.index(node_id) for node_id in self.order]


def _check_ring(problem: Problem, order: Sequence[str], counts: Sequence[int]) -> None:
    if len(order) != len(counts) or not order or order[0] != problem.nodes[0].node_id:
        raise InternalError("a ring begins at the starter and has one count for each node")
    for node_id in order:
        problem.index(node_id)
    if len(set(order)) < len(order):
        raise InternalError("a node is in the ring twice")
    if counts[0] < 0 or any(n < 1 for n in counts[1:]) or sum(counts) != problem.model.n_blocks:
        raise InternalError(f"counts {list(counts)} do not split {problem.model.n_blocks} blocks")
