"""Which solver for which size and objective.

Up to `EXACT_NODES` nodes the answer is the optimum (`rings`). Above that it is a heuristic: two orders of the nodes, fastest
blocks first and nearest neighbour first, each solved exactly over node choice and counts (`ordered`); then, if the better
one uses few enough nodes, they are solved exactly, in any order, together with the fastest of the others, a group at a time.
What it cannot find: a better order of a ring that uses more than `EXACT_NODES` nodes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from mdi.plan.instance import TIE, Instance, Ring
from mdi.plan.ordered import shortest_in_order
from mdi.plan.plan import Objective
from mdi.plan.rings import shortest_ring

EXACT_NODES = 12  # 2**11 sets of workers; each node more doubles time and memory
IMPROVEMENTS = 16  # groups of other nodes tried by the heuristic, each the cost of one exact solution

Shortest = Callable[[Instance], Ring | None]


def best_ring(instance: Instance, objective: Objective, min_nodes: int) -> Ring | None:
    """The best ring with blocks on at least `min_nodes` nodes; None if none was found."""
    if len(instance.low) <= EXACT_NODES:
        return _exact(instance, objective, min_nodes)
    found = (best_in_order(instance, order, objective, min_nodes) for order in _orders(instance))
    rings = [ring for ring in found if ring is not None]
    if not rings:
        return None
    return _improved(instance, objective, min_nodes, min(rings, key=partial(_score, instance, objective)))


def best_in_order(instance: Instance, order: list[int], objective: Objective, min_nodes: int) -> Ring | None:
    """The best ring that takes its nodes from `order`, in that order; `order[0]` is the starter."""
    shortest = partial(shortest_in_order, min_nodes=min_nodes)
    return _renumbered(_optimum(instance.only(np.array(order)), objective, shortest, shortest), order)


def _exact(instance: Instance, objective: Objective, min_nodes: int) -> Ring | None:
    shortest = partial(shortest_ring, min_nodes=min_nodes)
    return _optimum(instance, objective, shortest, partial(shortest, fewest_first=True))


def _optimum(instance: Instance, objective: Objective, shortest: Shortest, preferred: Shortest) -> Ring | None:
    """The optimum among the rings that `shortest` looks at.

    Throughput: a ring whose slowest part takes at most T is a ring of `instance.within(T)`. So binary search gives the
    smallest T for which there is one, and `preferred` chooses among its rings.
    """
    if objective is Objective.LATENCY or shortest(instance) is None:
        return shortest(instance)
    bounds_s = instance.bounds_s()
    smallest = bisect_left(bounds_s, True, key=lambda bound_s: shortest(instance.within(bound_s)) is not None)
    return preferred(instance.within(bounds_s[smallest] * (1 + TIE)))


def _orders(instance: Instance) -> Iterator[list[int]]:
    workers = np.argsort(instance.block_s[1:], kind="stable") + 1
    yield [0, *workers.tolist()]
    order, left = [0], set(range(1, len(instance.low)))
    while left:
        order.append(min(left, key=lambda node: (instance.hop_s[order[-1], node], node)))
        left.remove(order[-1])
    yield order


def _improved(instance: Instance, objective: Objective, min_nodes: int, ring: Ring) -> Ring:
    fastest_first = (np.argsort(instance.block_s[1:], kind="stable") + 1).tolist()
    untried = [node for node in fastest_first if node not in ring.order]
    for _ in range(IMPROVEMENTS):
        room = EXACT_NODES - len(ring.order)
        if room < 0:
            break
        group, untried = untried[:room], untried[room:]
        nodes = [*ring.order, *group]
        better = _renumbered(_exact(instance.only(np.array(nodes)), objective, min_nodes), nodes)
        if better and _score(instance, objective, better) < _score(instance, objective, ring):
            ring = better
        if not untried or not room:
            break
    return ring


def _score(instance: Instance, objective: Objective, ring: Ring) -> tuple[float, int, float]:
    """Smaller is better."""
    first = ring.step_s if objective is Objective.LATENCY else ring.slowest_s(instance)
    return first, len(ring.order), ring.step_s


def _renumbered(ring: Ring | None, nodes: list[int]) -> Ring | None:
    return ring and Ring(tuple(nodes[node] for node in ring.order), ring.counts, ring.step_s)
