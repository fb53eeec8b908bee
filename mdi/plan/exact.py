"""The optimum for every objective, from solvers that know the shortest step only.

Every objective is one number: `(1 - busy_share) * step + busy_share * slowest part`. Latency is 0, throughput 1. Since the slowest
part of a ring has one of finitely many values T, and a ring whose slowest part takes at most T is a ring of `instance.within(T)`,
the shortest step is all that has to be solved: see `best_value`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from mdi.plan.bounds import slowest_bound
from mdi.plan.instance import TIE, Floats, Instance, Ring
from mdi.plan.ordered import shortest_in_order
from mdi.plan.pinned import shortest_pinned_ring
from mdi.plan.rings import shortest_ring

EXACT_NODES = 12  # 2**11 sets of workers; each node more doubles time and memory

Shortest = Callable[[Instance], Ring | None]


@dataclass(frozen=True, slots=True)
class Found:
    """A ring, and what no ring can beat: equal to the ring's own value where it is proven to be the best."""

    ring: Ring
    bound_s: float


def best_in_order(instance: Instance, order: list[int], busy_share: float, min_nodes: int) -> Ring | None:
    """The best ring that takes its nodes from `order`, in that order; `order[0]` is the starter."""
    shortest = partial(shortest_in_order, min_nodes=min_nodes)
    ring = best_value(instance.only(np.array(order)), busy_share, min_nodes, shortest, shortest)
    return None if ring is None else renumbered(ring, order)


def exact_ring(instance: Instance, busy_share: float, min_nodes: int) -> Ring | None:
    """The optimum over node choice, order and counts; for at most EXACT_NODES nodes."""
    solver = shortest_pinned_ring if instance.pins else shortest_ring
    shortest = partial(solver, min_nodes=min_nodes)
    return best_value(instance, busy_share, min_nodes, shortest, partial(shortest, fewest_first=True))


def renumbered(ring: Ring, nodes: list[int]) -> Ring:
    return Ring(tuple(nodes[node] for node in ring.order), ring.counts, ring.step_s)


def score(instance: Instance, busy_share: float, ring: Ring) -> tuple[float, int, float]:
    """Smaller is better."""
    return ring.value_s(instance, busy_share), len(ring.order), ring.step_s


def best_value(instance: Instance, busy_share: float, min_nodes: int, shortest: Shortest, preferred: Shortest) -> Ring | None:
    """The optimum among the rings that `shortest` looks at. For throughput, `preferred` chooses among equal ones.

    No T below `slowest_bound` is tried; mostly it is the answer.
    """
    ring = shortest(instance)
    if busy_share == 0 or ring is None:
        return ring
    bounds_s = instance.bounds_s()
    bounds_s = bounds_s[_place(bounds_s, slowest_bound(instance, min_nodes)) :]
    if busy_share < 1:
        return _between(instance, busy_share, shortest, bounds_s, ring)

    def possible(bound_s: float) -> bool:
        return shortest(instance.within(bound_s)) is not None

    smallest = 0 if possible(bounds_s[0]) else bisect_left(bounds_s, True, lo=1, key=possible)
    return preferred(instance.within(bounds_s[smallest] * (1 + TIE)))


def _between(instance: Instance, busy_share: float, shortest: Shortest, bounds_s: Floats, fastest: Ring) -> Ring:
    """Branch and bound over the slowest part's value T.

    The shortest step falls as T grows. So in an interval of values no ring is better than the shortest step known at its upper end with
    the T of its lower end; and the ring found for T serves all values from its own slowest part to T.
    """
    best = fastest
    # (first, last, step that is no longer than any in the interval)
    intervals = [(0, _place(bounds_s, fastest.slowest_s(instance)) - 1, fastest.step_s)]
    while intervals:
        first, last, step_s = intervals.pop()
        if first > last:
            continue
        least_s = (1 - busy_share) * step_s + busy_share * bounds_s[first]
        if least_s >= best.value_s(instance, busy_share) * (1 - TIE):
            continue
        middle = (first + last) // 2
        intervals.append((middle + 1, last, step_s))
        ring = shortest(instance.within(bounds_s[middle] * (1 + TIE)))
        if ring is None:
            continue
        best = min(best, ring, key=partial(score, instance, busy_share))
        intervals.append((first, min(middle, _place(bounds_s, ring.slowest_s(instance))) - 1, ring.step_s))
    return best


def _place(bounds_s: Floats, value_s: float) -> int:
    return int(np.searchsorted(bounds_s, value_s * (1 - TIE)))
