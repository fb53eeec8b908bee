"""A `Problem` as arrays over its nodes: what the solvers search, for decode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mdi.plan.costs import Problem
from mdi.plan.plan import BlockRange

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
    pins: Mapping[int, BlockRange] = field(default_factory=dict)  # blocks that a node must hold; what it holds is one run

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

    def barred_s(self, node: int) -> Floats:
        """[blocks, first block]: 0 where pins let the node hold so many from there on, infinite where they do not."""
        start, n = np.arange(self.n_blocks + 1)[None, :], np.arange(self.n_blocks + 1)[:, None]
        allowed = start + n <= self.n_blocks
        for owner, pin in self.pins.items():
            if owner == node:
                allowed = allowed & (start <= pin.start) & (start + n >= pin.stop)
            else:
                allowed = allowed & ((n == 0) | (start >= pin.stop) | (start + n <= pin.start))
        return np.where(allowed, 0.0, np.inf)

    def only(self, nodes: Ints) -> Instance:
        """The instance of some of the nodes, `nodes[0]` being 0."""
        return replace(
            self,
            overhead_s=self.overhead_s[nodes],
            block_s=self.block_s[nodes],
            low=self.low[nodes],
            cap=self.cap[nodes],
            hop_s=self.hop_s[np.ix_(nodes, nodes)],
            pins={place: self.pins[node] for place, node in enumerate(nodes.tolist()) if node in self.pins},
        )


@dataclass(frozen=True, slots=True)
class Ring:
    """A solution: nodes in order, the starter first, their counts, and the decode step's time."""

    order: tuple[int, ...]
    counts: tuple[int, ...]
    step_s: float

    def value_s(self, instance: Instance, busy_share: float) -> float:
        """What is minimised: the step, and the slowest part with the weight `busy_share`."""
        return (1 - busy_share) * self.step_s + busy_share * self.slowest_s(instance)

    def slowest_s(self, instance: Instance) -> float:
        """The slowest stage or hop; at `instance.hop_s` 0 of a node to itself, a starter alone has no hop."""
        stages_s = instance.stage_s()[self.order, self.counts]
        hops_s = instance.hop_s[self.order, (*self.order[1:], 0)]
        return float(max(stages_s.max(), hops_s.max()))


def instance_of(problem: Problem, starter_min_blocks: int, pins: Mapping[int, BlockRange] | None = None) -> Instance:
    """The starter keeps `starter_min_blocks`, or as many of them as it can hold. `pins` by node index."""
    nodes, load, pins = problem.nodes, problem.load, dict(pins or {})
    times = [problem.decode_time(index, load.rows, load.context_tokens) for index in range(len(nodes))]
    cap = np.array([problem.block_limit(index) for index in range(len(nodes))], dtype=np.int64)
    low = np.ones(len(nodes), dtype=np.int64)
    low[0] = min(starter_min_blocks, cap[0])
    for index, pin in pins.items():
        low[index] = max(low[index], pin.stop if index == 0 else len(pin))  # the starter's blocks begin at 0
    return Instance(
        n_blocks=problem.model.n_blocks,
        base_s=problem.head_s(load.rows),
        overhead_s=np.array([time.overhead_s for time in times]),
        block_s=np.array([time.block_s for time in times]),
        low=low,
        cap=cap,
        hop_s=problem.hop_decode_s(),
        pins=pins,
    )


def best_choice(step_s: Floats, n_workers: Ints, *, fewest_first: bool) -> tuple[int, int] | None:
    """(row, set of workers) with the shortest of the steps [choices, sets]; None if none is finite.

    Equal steps: fewer workers, then the earlier row, then the earlier set. With `fewest_first` the workers count before the step.
    """
    candidates = np.isfinite(step_s)
    if not candidates.any():
        return None

    def fewest() -> Bools:
        most = n_workers.max()
        few: Bools = n_workers == np.where(candidates, n_workers, most).min()
        return few

    if fewest_first:
        candidates &= fewest()
    candidates &= step_s <= step_s[candidates].min() * (1 + TIE)
    candidates &= fewest()
    row, chosen = np.argwhere(candidates)[0]
    return int(row), int(chosen)
