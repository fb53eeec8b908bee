"""A `Problem` as arrays over its nodes: what the solvers search, for decode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mdi.plan.costs import Problem

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

# Sums of the same times in another order differ by about 1e-15 of their value; what is closer than this is a tie.
TIE = 1e-13


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """Node 0 is the starter. A node in use costs `overhead_s + n * block_s`, low <= n <= cap; the starter, `base_s` besides.

    A worker is in use when it is in the ring, so its `low` is at least 1. The starter is always in the ring; with `low` 0 it
    may be without a stage. A `cap` below `low` means: cannot be used; below 0, for the starter: not even without a stage.
    """

    n_blocks: int
    base_s: float
    overhead_s: Floats  # [nodes]
    block_s: Floats  # [nodes]
    low: Ints  # [nodes]
    cap: Ints  # [nodes]
    hop_s: Floats  # [nodes, nodes], infinite where there is no way

    def stage_s(self) -> Floats:
        """Stage times [nodes, n_blocks + 1]; infinite beyond `low` and `cap`."""
        n = np.arange(self.n_blocks + 1)
        times = self.overhead_s[:, None] + n * self.block_s[:, None]
        times[:, 0] = 0.0
        times[0] += self.base_s
        return np.where((n >= self.low[:, None]) & (n <= self.cap[:, None]), times, np.inf)

    def within(self, bound_s: float) -> Instance:
        """The same instance without any stage or hop slower than `bound_s`."""
        fits = self.stage_s() <= bound_s
        last = self.n_blocks - np.argmax(fits[:, ::-1], axis=1)
        return replace(
            self,
            cap=np.where(fits.any(axis=1), last, -1),
            hop_s=np.where(self.hop_s <= bound_s, self.hop_s, np.inf),
        )

    def bounds_s(self) -> Floats:
        """Every value, ascending, that the slowest stage or hop of a ring can have."""
        values = np.unique(np.concatenate([self.stage_s().ravel(), self.hop_s.ravel()]))
        finite: Floats = values[np.isfinite(values)]
        return finite

    def only(self, nodes: Ints) -> Instance:
        """The instance of some of the nodes, `nodes[0]` being 0."""
        return replace(
            self,
            overhead_s=self.overhead_s[nodes],
            block_s=self.block_s[nodes],
            low=self.low[nodes],
            cap=self.cap[nodes],
            hop_s=self.hop_s[np.ix_(nodes, nodes)],
        )


@dataclass(frozen=True, slots=True)
class Ring:
    """A solution: nodes in order, the starter first, their counts, and the decode step's time."""

    order: tuple[int, ...]
    counts: tuple[int, ...]
    step_s: float

    def slowest_s(self, instance: Instance) -> float:
        """The slowest stage or hop; at `instance.hop_s` 0 of a node to itself, a starter alone has no hop."""
        stages_s = instance.stage_s()[self.order, self.counts]
        hops_s = instance.hop_s[self.order, (*self.order[1:], 0)]
        return float(max(stages_s.max(), hops_s.max()))


def instance_of(problem: Problem, starter_min_blocks: int) -> Instance:
    """The starter keeps `starter_min_blocks`, or as many of them as it can hold."""
    nodes = problem.nodes
    cap = np.array([problem.block_limit(index) for index in range(len(nodes))], dtype=np.int64)
    low = np.ones(len(nodes), dtype=np.int64)
    low[0] = min(starter_min_blocks, cap[0])
    hop_s = np.zeros((len(nodes), len(nodes)))
    for row, sender in enumerate(nodes):
        for column, receiver in enumerate(nodes):
            if row != column:
                hop_s[row, column] = problem.links[sender.node_id, receiver.node_id].decode_s
    return Instance(
        n_blocks=problem.model.n_blocks,
        base_s=problem.starter.decode_s,
        overhead_s=np.array([node.decode.overhead_s for node in nodes]),
        block_s=np.array([node.decode.block_s for node in nodes]),
        low=low,
        cap=cap,
        hop_s=hop_s,
    )
