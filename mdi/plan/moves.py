"""The ring that moves the fewest blocks among those that are good enough: exact over node choice, order and counts.

A block moves when a node is to hold it that does not hold it now. How many move depends on where in the ring a stage lies, so this is the
recurrence of `pinned` with one index more, the blocks that have moved:

    f(S, j, l, m) = shortest way through the workers S, ending at j, with the first l blocks done and m of them moved
                  = min over n of  stage(j, n)  +  min over i of  f(S - j, i, l - n, m - moved(j, l - n, n)) + hop(i, j)

Two things keep it small. m ends at the number of moves that is asked for, which is tried in the order 0, 1, 2, 4, ...; and nodes take no
part whose every ring is too slow even if blocks moved for nothing, which the tables of `rings` tell for each set of nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from mdi.plan import exact
from mdi.plan.bounds import slowest_bound
from mdi.plan.exact import best_value, renumbered
from mdi.plan.instance import TIE, Floats, Instance, Ints, Ring, best_choice
from mdi.plan.pinned import Stages
from mdi.plan.plan import BlockRange
from mdi.plan.rings import fastest_by_set

# Of f, in numbers of 8 bytes: 256 MiB, which a Pi has beside a model. 12 nodes with 32 blocks of which 32 move take three quarters of it.
MOST_STATES = 1 << 25

Held = Mapping[int, BlockRange]  # what each node holds now, by its index


def fewest_moves(instance: Instance, held: Held, busy_share: float, min_nodes: int, most_s: float) -> Ring | None:
    """Of the rings whose value is at most `most_s`, one that moves the fewest blocks, and of these the best.

    None where no ring is so good, where there are too many nodes that could be in such a ring to look at all, or too many states.
    """
    kept = _possible(instance, busy_share, min_nodes, most_s)
    if kept is None or len(kept) > exact.EXACT_NODES or not instance.pins.keys() <= set(kept):
        return None
    smaller = instance.only(np.array(kept))
    held = {place: held[node] for place, node in enumerate(kept) if node in held}
    slack_s = most_s * (1 + TIE)

    def best(most: int) -> Ring | None:
        shortest = partial(shortest_with_moves, held=held, most=most, min_nodes=min_nodes)
        return best_value(smaller, busy_share, min_nodes, shortest, partial(shortest, fewest_first=True))

    def good(most: int) -> bool:
        if busy_share == 1:  # any ring without a slower part will do: the slowest part itself need not be searched
            within = smaller.within(slack_s)
            return shortest_with_moves(within, held=held, most=most, min_nodes=min_nodes) is not None
        ring = best(most)
        return ring is not None and ring.value_s(smaller, busy_share) <= slack_s

    workers = len(kept) - 1
    tried = [most for most in (0, *(1 << i for i in range(20))) if most < instance.n_blocks] + [instance.n_blocks]
    low = 0  # fewer moves are too few
    for most in tried:
        if (1 << workers) * max(1, workers) * (instance.n_blocks + 1) * (most + 1) > MOST_STATES:
            return None
        if good(most):
            break
        low = most + 1
    else:
        return None
    while low < most:
        middle = (low + most) // 2
        low, most = (low, middle) if good(middle) else (middle + 1, most)
    ring = best(most)
    return None if ring is None else renumbered(ring, kept)


def moved_blocks(ring: Ring, held: Held) -> int:
    """How many blocks the ring's nodes do not hold now."""
    moved = start = 0
    for node, n in zip(ring.order, ring.counts, strict=True):
        old = held.get(node, BlockRange(0, 0))
        moved += n - max(0, min(old.stop, start + n) - max(old.start, start))
        start += n
    return moved


def _possible(instance: Instance, busy_share: float, min_nodes: int, most_s: float) -> list[int] | None:
    """Nodes, the starter first, that are in any ring of at most `most_s`; None where there are none or too many to tell.

    A ring is no better than the fastest one of the same nodes with the slowest part that no ring can avoid.
    """
    least_s = slowest_bound(instance, min_nodes)
    if busy_share > 0:
        instance = instance.within(most_s / busy_share * (1 + TIE))
    usable = [0, *(node for node in range(1, len(instance.low)) if instance.cap[node] >= instance.low[node])]
    if len(usable) > exact.EXACT_NODES or instance.cap[0] < instance.low[0]:
        return None
    step_s = fastest_by_set(instance.only(np.array(usable)))
    sets = np.flatnonzero(np.isfinite(step_s))
    sets = sets[(1 - busy_share) * step_s[sets] + busy_share * least_s <= most_s * (1 + TIE)]
    if not len(sets):
        return None
    return [0, *(usable[worker + 1] for worker in range(len(usable) - 1) if ((sets >> worker) & 1).any())]


def shortest_with_moves(
    instance: Instance, *, held: Held, most: int, min_nodes: int, fewest_first: bool = False
) -> Ring | None:
    """As `rings.shortest_ring`, of the rings that move at most `most` blocks."""
    search = _Search(instance, held, most)
    workers = len(instance.low) - 1
    n_workers = np.array([chosen.bit_count() for chosen in range(1 << workers)])
    rings = []
    for on_starter in (1, 0) if instance.low[0] == 0 else (1,):  # one table after the other: they are large
        own_s = search.own_s(on_starter)
        way_s = search.ways(own_s)
        step_s = (way_s[:, :, -1].min(axis=2) + instance.hop_s[1:, 0]).min(axis=1, initial=np.inf)
        step_s[0] = own_s[-1].min()
        step_s = np.where(n_workers + on_starter >= min_nodes, step_s, np.inf)
        best = best_choice(step_s[None], n_workers, fewest_first=fewest_first)
        if best is not None:
            _, chosen = best
            rings.append(search.trace(own_s, way_s, chosen, float(step_s[chosen])))
    if fewest_first:
        return min(rings, key=lambda ring: (len(ring.order), ring.step_s), default=None)
    return min(rings, key=lambda ring: ring.step_s, default=None)


class _Search:
    """The table f, and the way back through it. Set `s` holds worker `w` if bit `w` is set."""

    def __init__(self, instance: Instance, held: Held, most: int) -> None:
        self._hop_s = instance.hop_s
        self._cost_s = Stages.of(instance).cost_s
        self._moved = np.stack([_moved(instance, held.get(node)) for node in range(len(instance.low))])
        self._width = instance.n_blocks + 1
        self._workers = len(instance.low) - 1
        self._most = most
        self._runs = [self._possible_runs(node) for node in range(len(instance.low))]

    def _possible_runs(self, node: int) -> list[tuple[int, int, int, float]]:
        """(first block, blocks, how many of them move, seconds) of every stage that the node may have."""
        possible = np.isfinite(self._cost_s[node]) & (self._moved[node] <= self._most)
        runs = np.argwhere(possible[1:])
        return [
            (int(start), int(n) + 1, int(self._moved[node, n + 1, start]), float(self._cost_s[node, n + 1, start]))
            for n, start in runs
        ]

    def own_s(self, on_starter: int) -> Floats:
        """The starter's stage [blocks done, moved]: with blocks of its own, or with none."""
        own_s = np.full((self._width, self._most + 1), np.inf)
        if not on_starter:
            own_s[0, 0] = self._cost_s[0, 0, 0]
            return own_s
        for start, n, moved, cost_s in self._runs[0]:
            if start == 0:
                own_s[n, moved] = cost_s
        return own_s

    def ways(self, own_s: Floats) -> Floats:
        """f as [sets, last worker, blocks done, moved]."""
        workers = self._workers
        way_s = np.full((1 << workers, workers, *own_s.shape), np.inf)
        for worker in range(workers):
            way_s[1 << worker, worker] = self._after(own_s + self._hop_s[0, worker + 1], worker + 1)
        sets = np.arange(1 << workers)
        size = ((sets[:, None] >> np.arange(workers)) & 1).sum(axis=1)
        for n in range(2, workers + 1):
            layer = sets[size == n]
            for last in range(workers):
                ending = layer[(layer >> last) & 1 == 1]
                way_s[ending, last] = self._after(self._arrived(way_s, ending ^ (1 << last), last), last + 1)
        return way_s

    def _arrived(self, way_s: Floats, before: Ints, last: int) -> Floats:
        """The shortest ways through the sets `before` and on to worker `last`: [sets, blocks done, moved]."""
        arrived_s: Floats = way_s[before, 0] + self._hop_s[1, last + 1]
        for worker in range(1, self._workers):
            np.minimum(arrived_s, way_s[before, worker] + self._hop_s[worker + 1, last + 1], out=arrived_s)
        return arrived_s

    def _after(self, arrived_s: Floats, node: int) -> Floats:
        """Those ways with a stage on `node` behind them."""
        done_s = np.full_like(arrived_s, np.inf)
        for start, n, moved, cost_s in self._runs[node]:
            into = done_s[..., start + n, moved:]
            np.minimum(into, arrived_s[..., start, : self._most + 1 - moved] + cost_s, out=into)
        return done_s

    def trace(self, own_s: Floats, way_s: Floats, chosen: int, step_s: float) -> Ring:
        """Walks the table backwards, finding again which step gave each value."""
        done, left = self._width - 1, self._most
        onward_s = self._hop_s[1:, 0]
        order: list[int] = []
        counts: list[int] = []
        while chosen:
            tours_s = way_s[chosen, :, done] + onward_s[:, None]
            if not order:  # any number of moves will do
                left = int(np.argmin(tours_s.min(axis=0)))
            last = int(np.argmin(tours_s[:, left]))
            order.insert(0, last + 1)
            chosen ^= 1 << last
            arrived_s = self._arrived(way_s, np.array([chosen]), last)[0] if chosen else own_s + self._hop_s[0, last + 1]
            runs = [(n, moved, arrived_s[done - n, left - moved] + cost_s)
                    for start, n, moved, cost_s in self._runs[last + 1] if start + n == done and moved <= left]  # fmt: skip
            n, moved, _ = min(runs, key=lambda run: run[2])
            counts.insert(0, n)
            done, left = done - n, left - moved
            onward_s = self._hop_s[1:, last + 1]
        return Ring((0, *order), (done, *counts), step_s)


def _moved(instance: Instance, held: BlockRange | None) -> Ints:
    """How many of a run's blocks a node does not hold: [blocks, first block]."""
    width = instance.n_blocks + 1
    start, n = np.arange(width)[None, :], np.arange(width)[:, None]
    if held is None:
        return np.broadcast_to(n, (width, width)).copy()
    shared = np.minimum(held.stop, start + n) - np.maximum(held.start, start)
    moved: Ints = n - np.maximum(0, shared)
    return moved
