"""The ring with the shortest step, exact over node choice, order and counts.

A step costs the stages plus the hops. For a fixed set of nodes the two are independent: the stages cost
`sum(overhead_s) + sum(n * block_s)` whatever the order, and the hops depend on the order alone. So for each set take the best
counts and the best tour, and then the best set.

Best counts: every node takes its `low`, and the rest go to the fastest blocks first, up to each `cap`. In any other split some
node `a` below its cap has faster blocks than a node `b` above its low; moving one block from `b` to `a` is no slower, and
repeating it ends in this split.

Best tour: Held and Karp's recurrence over (set, last node), which yields every set's tour in one run.

For `w` workers: 2**w sets, 2**w * w**2 steps for the tours. See M. Held, R. M. Karp, "A dynamic programming approach to
sequencing problems", 1962.
"""

from __future__ import annotations

import numpy as np

from mdi.plan.instance import Bools, Floats, Instance, Ints, Ring, best_choice


def shortest_ring(instance: Instance, min_nodes: int, *, fewest_first: bool = False) -> Ring | None:
    """The shortest step over at least `min_nodes` nodes with blocks; None if there is no such ring.

    Equal steps: the one with fewer workers, then with a stage on the starter, then with the nodes listed first. With
    `fewest_first` the number of workers counts before the step's time.
    """
    tours, sets = _Tours(instance.hop_s), _sets(instance)
    n_workers = sets.sum(axis=1)
    choices = [
        (np.where(n_workers + on_starter >= min_nodes, step_s, np.inf), counts)
        for on_starter, step_s, counts in _choices(instance, tours, sets)
    ]
    step_s = np.stack([step for step, _ in choices])  # [choices, sets]
    best = best_choice(step_s, n_workers, fewest_first=fewest_first)
    if best is None:
        return None
    choice, chosen = best
    order = (0, *(worker + 1 for worker in tours.order(int(chosen))))
    counts = choices[choice][1][chosen]
    return Ring(order, tuple(int(counts[node]) for node in order), float(step_s[choice, chosen]))


def fastest_by_set(instance: Instance) -> Floats:
    """The shortest step of the rings of each set of workers, with or without a stage on the starter; infinite where there is none.

    Set `s` holds worker `w`, node `w + 1`, if bit `w` is set. Pins are not looked at.
    """
    choices = _choices(instance, _Tours(instance.hop_s), _sets(instance))
    fastest_s: Floats = np.min([step_s for _, step_s, _ in choices], axis=0)
    return fastest_s


def _sets(instance: Instance) -> Ints:
    """Which workers are in which set: [sets, workers]."""
    workers = len(instance.low) - 1
    sets: Ints = (np.arange(1 << workers)[:, None] >> np.arange(workers)) & 1
    return sets


def _choices(instance: Instance, tours: _Tours, sets: Ints) -> list[tuple[int, Floats, Ints]]:
    """(1 with a stage on the starter, 0 without; shortest steps [sets]; counts [sets, nodes]) for both, as far as they may be."""
    found = []
    for on_starter in (1, 0) if instance.low[0] == 0 else (1,):
        member = np.column_stack([np.full(len(sets), on_starter), sets])  # [sets, nodes]
        counts, feasible = _fill(instance, member)
        stages_s = instance.base_s + member @ instance.overhead_s + counts @ instance.block_s
        found.append((on_starter, np.where(feasible, stages_s + tours.closed_s, np.inf), counts))
    return found


def _fill(instance: Instance, member: Ints) -> tuple[Ints, Bools]:
    """The best counts [sets, nodes] for every set of `member` [sets, nodes], and which sets can hold the blocks [sets]."""
    low = np.maximum(instance.low, 1)
    counts = member * low
    feasible = ~np.any(counts > instance.cap * member, axis=1) & (instance.cap[0] >= 0)  # the starter has to do its part
    left = instance.n_blocks - counts.sum(axis=1)
    feasible &= left >= 0
    for node in np.argsort(instance.block_s, kind="stable"):
        take = np.clip(member[:, node] * (instance.cap[node] - low[node]), 0, np.maximum(left, 0))
        counts[:, node] += take
        left -= take
    return counts, feasible & (left == 0)


class _Tours:
    """The shortest tour from the starter through each set of workers and back; set `s` holds worker `w` if bit `w` is set."""

    def __init__(self, hop_s: Floats) -> None:
        workers = len(hop_s) - 1
        self._between_s = hop_s[1:, 1:]
        self._back_s = hop_s[1:, 0]
        # The shortest way from the starter through all of a set, ending at one of its workers: [sets, workers].
        self._way_s = np.full((1 << workers, workers), np.inf)
        sets = np.arange(1 << workers)
        size = ((sets[:, None] >> np.arange(workers)) & 1).sum(axis=1)
        for worker in range(workers):
            self._way_s[1 << worker, worker] = hop_s[0, worker + 1]
        for n in range(2, workers + 1):
            layer = sets[size == n]
            for last in range(workers):
                ending = layer[(layer >> last) & 1 == 1]
                before_s = self._way_s[ending ^ (1 << last)]
                self._way_s[ending, last] = (before_s + self._between_s[:, last]).min(axis=1)
        self.closed_s = np.min(self._way_s + self._back_s, axis=1, initial=np.inf)  # [sets]
        self.closed_s[0] = 0.0  # the starter alone has no hop

    def order(self, chosen: int) -> list[int]:
        """The workers of set `chosen` in the order of its shortest tour."""
        order: list[int] = []
        onward_s = self._back_s
        while chosen:
            tour_s = self._way_s[chosen] + onward_s
            last = len(tour_s) - 1 - int(np.argmin(tour_s[::-1]))  # of equal tours, the one in the order of the nodes
            order.insert(0, last)
            onward_s = self._between_s[:, last]
            chosen ^= 1 << last
        return order
