"""Times of real traffic beside the predicted ones, and the problem that follows from them. Pure.

A factor is how many times as long something takes as was measured when it had nothing else to do: 1 is as predicted, 2 half as fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mdi.errors import PeerError
from mdi.plan.costs import LinkCost, Links, LinkTable, NodeCost, Problem, StageTime, StarterCost
from mdi.plan.plan import BlockRange

DECODE_ROWS = (
    8  # a step of so many rows at most is one of decoding: up to here the line of `Problem.decode_time` is right within 15 %
)
MIN_STEPS = 3  # of fewer a single one decides
# What is in use looks slower than its profile for reasons that are not its own: blocks run up to 30 % slower outside a hot loop
# (docs/performance.md), and so would those of a node that is not in use. Without this, plans would flee to whoever was not tried yet.
COMMON_FACTOR = 1.3
LEAST_FACTOR, MOST_FACTOR = 1 / 16, 1024.0  # what is beyond is a broken clock, and would break the solvers' arithmetic

MAX_STEP_ROWS = 1 << 20  # no frame holds more: its 4 MiB are at least one value for each row
MAX_STEPS = 1 << 40
MAX_CONTEXT_TOKENS = 1 << 31
MAX_STEP_S = 3600.0  # every step has a deadline, which is far shorter


@dataclass(frozen=True, slots=True)
class StepTimes:
    """`steps` steps on one node, each of `rows` tokens with on average `context_tokens` before them, took `seconds` together.

    Waiting is not in it, nor what the network took.
    """

    rows: int
    steps: int
    context_tokens: float
    seconds: float

    def __post_init__(self) -> None:
        if (
            not 1 <= self.rows <= MAX_STEP_ROWS
            or not 1 <= self.steps <= MAX_STEPS
            or not 0 <= self.context_tokens <= MAX_CONTEXT_TOKENS  # NaN fails every comparison
            or not 0 < self.seconds <= MAX_STEP_S * self.steps
        ):
            raise PeerError(
                f"{self.steps} steps of {self.rows} rows behind {self.context_tokens} tokens cannot take {self.seconds} s"
            )

    @property
    def is_decode(self) -> bool:
        return self.rows <= DECODE_ROWS

    def and_more(self, other: StepTimes) -> StepTimes:
        """Both together; of the same rows."""
        steps = self.steps + other.steps
        context = self.context_tokens + (other.context_tokens - self.context_tokens) * (other.steps / steps)
        return StepTimes(self.rows, steps, context, self.seconds + other.seconds)

    def without(self, earlier: StepTimes) -> StepTimes | None:
        """What came after `earlier`, which is a part of this; None when nothing did."""
        steps, seconds = self.steps - earlier.steps, self.seconds - earlier.seconds
        if steps < 1 or seconds <= 0:
            return None
        context = (self.context_tokens * self.steps - earlier.context_tokens * earlier.steps) / steps
        return StepTimes(self.rows, steps, max(0.0, context), seconds)


@dataclass(frozen=True, slots=True)
class Factor:
    """Of one node, for steps of decoding and for chunks of prompts; None where nothing is known."""

    decode: float | None = None
    prefill: float | None = None


@dataclass(frozen=True, slots=True)
class Factors:
    """What is known of nodes by id, and of hops by (from, to). What is not in it was not in use."""

    nodes: Mapping[str, Factor] = field(default_factory=dict)
    hops: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def decode(self, node_id: str) -> float | None:
        return self.nodes.get(node_id, Factor()).decode


NO_FACTORS = Factors()


def factor_of(problem: Problem, index: int, n_blocks: int, times: Iterable[StepTimes]) -> Factor:
    """How the steps of a stage of `n_blocks` on node `index` of the problem compare with its predictions, all of a kind together.

    Their sums and not a median: a device under a quota, or one that is hot, computes at full speed and then pauses, and of its short steps
    only every tenth may be a slow one. Chunks count when they are at least half of the one that was measured: between them and decoding
    lies a line, not a measurement.
    """
    decode, prefill = _Sum(), _Sum()
    for each in times:
        if each.is_decode:
            predicted_s = problem.decode_time(index, each.rows, each.context_tokens).seconds(n_blocks)
            decode = decode.plus(each, predicted_s)
        elif 2 * each.rows >= problem.model.chunk_tokens:
            predicted_s = problem.prefill_time(index, each.rows, each.context_tokens).seconds(n_blocks)
            prefill = prefill.plus(each, predicted_s)
    return Factor(decode.factor, prefill.factor)


@dataclass(frozen=True, slots=True)
class _Sum:
    steps: int = 0
    seconds: float = 0.0
    predicted_s: float = 0.0

    def plus(self, times: StepTimes, predicted_s: float) -> _Sum:
        """`predicted_s` is for one of the steps."""
        return _Sum(self.steps + times.steps, self.seconds + times.seconds, self.predicted_s + times.steps * predicted_s)

    @property
    def factor(self) -> float | None:
        return _clamped(self.seconds / self.predicted_s) if self.steps >= MIN_STEPS else None


def head_factor(problem: Problem, times: Iterable[StepTimes]) -> float | None:
    """The same for the head and decode steps."""
    found = _Sum()
    for each in times:
        if each.is_decode and problem.starter.decode_s > 0:
            found = found.plus(each, problem.head_s(each.rows))
    return found.factor


def mean_step_s(times: Iterable[StepTimes]) -> float | None:
    """Of the decode steps; None when there are few."""
    decode = [each for each in times if each.is_decode]
    steps = sum(each.steps for each in decode)
    return sum(each.seconds for each in decode) / steps if steps >= MIN_STEPS else None


def hop_factor(hops_s: float, predicted_s: float) -> float:
    """`hops_s` is what remained of a round trip beside the stages; by the noise of the stages it may be nothing, or less."""
    return _clamped(hops_s / predicted_s) if predicted_s > 0 else 1.0


def _clamped(factor: float) -> float:
    return min(max(factor, LEAST_FACTOR), MOST_FACTOR)


def scaled(problem: Problem, factors: Factors) -> Problem:
    """The problem as traffic shows it. `problem` has the times that were measured without traffic.

    A node known in decoding alone is as slow in prompts. Embedding and head are as slow as the starter's blocks. What was not in use is
    as far from its measurements as the best of what was, but no further than COMMON_FACTOR, and never taken for better than measured.
    """
    unseen = _common(found.decode for found in factors.nodes.values())
    nodes = tuple(_scaled_node(node, factors.nodes.get(node.node_id, Factor()), unseen) for node in problem.nodes)
    own = factors.decode(problem.nodes[0].node_id) or unseen
    starter = StarterCost(problem.starter.decode_s * own, problem.starter.prefill_s * own, problem.starter.bytes)
    return replace(problem, nodes=nodes, starter=starter, links=_scaled_links(problem.links, factors.hops))


def _common(factors: Iterable[float | None]) -> float:
    known = [factor for factor in factors if factor is not None]
    return min(max(min(known), 1.0), COMMON_FACTOR) if known else 1.0


def _scaled_node(node: NodeCost, factor: Factor, unseen: float) -> NodeCost:
    decode = factor.decode or unseen
    prefill = factor.prefill or decode
    return replace(
        node,
        decode=StageTime(node.decode.overhead_s * decode, node.decode.block_s * decode),
        prefill=StageTime(node.prefill.overhead_s * prefill, node.prefill.block_s * prefill),
        decode_kv_s=node.decode_kv_s * decode,
        prefill_kv_s=node.prefill_kv_s * prefill,
    )


def _scaled_links(links: Links, hops: Mapping[tuple[str, str], float]) -> Links:
    unseen = _common(hops.values())
    if not isinstance(links, LinkTable):
        factors = {pair: hops.get(pair, unseen) for pair in links}
        return {pair: LinkCost(link.decode_s * factors[pair], link.prefill_s * factors[pair]) for pair, link in links.items()}
    place = {node_id: index for index, node_id in enumerate(links.ids)}
    factor = np.full(links.decode_s.shape, unseen)
    for (sender, receiver), known in hops.items():
        if sender in place and receiver in place:
            factor[place[sender], place[receiver]] = known
    return LinkTable(links.ids, links.decode_s * factor, links.prefill_s * factor)


def overlap(one: BlockRange, other: BlockRange) -> int:
    """How many blocks two ranges share."""
    return max(0, min(one.stop, other.stop) - max(one.start, other.start))
