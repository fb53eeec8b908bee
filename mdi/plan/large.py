"""Rings of more nodes than can be searched exactly: a heuristic beside a bound that no ring can beat (`bounds`).

For the shortest step: the relaxed problem, in which hops cost the same in any order, chooses nodes. With those that come closest to
being chosen they make at most some hundred candidates. Three orders of these (a short tour of the chosen ones with the others put in
where they cost least, fastest blocks first, nearest neighbour first) are each solved exactly over node choice and counts (`ordered`).
If the best ring uses few enough nodes, it is solved exactly, in any order, together with others, a group at a time, until it reaches the
bound. What it cannot find: a better order of a ring that uses more than `EXACT_NODES` nodes than insertion and moves give.

For the slowest part, `T` grows from its bound until there is a ring within T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from mdi.plan import exact
from mdi.plan.bounds import Relaxed, relaxed_step, slowest_bound
from mdi.plan.exact import Found, best_in_order, exact_ring, renumbered, score
from mdi.plan.instance import TIE, Instance, Ring
from mdi.plan.tour import short_tour

SPARE_NODES = 24  # candidates beside the chosen ones: twice EXACT_NODES
IMPROVEMENTS = 4  # groups of other nodes tried, each the cost of one exact solution
PINNED_IMPROVEMENTS = 1  # with pins such a solution takes up to a second
GROWTH = (1.0, 1.01, 1.03, 1.1, 1.3, 2.0, 4.0, np.inf)  # of T over its bound: most are met at the first
REFINEMENTS = 5  # halvings between the last T without a ring and the first with one
MIXED_TRIALS = 6  # values of T that are tried for a mixed objective


@dataclass(frozen=True, slots=True)
class _Step:
    """The shortest step that was found, None if none, and what no ring can beat."""

    ring: Ring | None
    bound_s: float


def near_best_ring(instance: Instance, busy_share: float, min_nodes: int) -> Found | None:
    """A good ring and its bound; None where none was found."""
    if busy_share == 0:
        step = _shortest(instance, min_nodes)
        return None if step.ring is None else Found(step.ring, min(step.bound_s, step.ring.step_s))
    slowest_s = slowest_bound(instance, min_nodes)
    if not np.isfinite(slowest_s):
        return None
    if busy_share == 1:
        ring = _fastest_full(instance, slowest_s, min_nodes)
        return None if ring is None else Found(ring, min(slowest_s, ring.slowest_s(instance)))
    return _mixed(instance, busy_share, slowest_s, min_nodes)


def _fastest_full(instance: Instance, slowest_s: float, min_nodes: int) -> Ring | None:
    tried_s, best = slowest_s, None
    for factor in GROWTH:
        bound_s = slowest_s * factor * (1 + TIE)
        best = _shortest(instance.within(bound_s), min_nodes).ring
        if best is not None:
            break
        tried_s = bound_s
    if best is None or tried_s == slowest_s:
        return best
    for _ in range(REFINEMENTS):
        middle_s = (tried_s + best.slowest_s(instance)) / 2
        ring = _shortest(instance.within(middle_s), min_nodes).ring
        if ring is None:
            tried_s = middle_s
        else:
            best = ring
    return best


def _mixed(instance: Instance, busy_share: float, slowest_s: float, min_nodes: int) -> Found | None:
    """Branch and bound over the slowest part's value T, as in `exact`, with a step's bound in place of the shortest step, and for so long
    as there is time: the interval of T with the least bound is halved next."""
    free = _shortest(instance, min_nodes)
    if free.ring is None:
        return None
    best, most_s = free.ring, free.ring.slowest_s(instance)

    def least_s(step_bound_s: float, value_s: float) -> float:
        return (1 - busy_share) * step_bound_s + busy_share * value_s

    beyond_s = least_s(free.bound_s, most_s)  # of rings with a slower slowest part
    # (bound, first T, last T, bound on the step within the last T)
    intervals = [(least_s(free.bound_s, slowest_s), slowest_s, most_s, free.bound_s)] if slowest_s < most_s else []
    for trial in range(MIXED_TRIALS):
        intervals = [each for each in sorted(intervals) if each[0] < best.value_s(instance, busy_share) * (1 - TIE)]
        if not intervals:
            break
        _, first_s, last_s, step_bound_s = intervals.pop(0)
        middle_s = first_s if trial == 0 else math.sqrt(first_s * last_s) if first_s > 0 else last_s / 2
        step = _shortest(instance.within(middle_s * (1 + TIE)), min_nodes)
        if step.ring is not None:
            best = min(best, step.ring, key=partial(score, instance, busy_share))
        if trial > 0:
            intervals.append((least_s(step.bound_s, first_s), first_s, middle_s, step.bound_s))
        intervals.append((least_s(step_bound_s, middle_s), middle_s, last_s, step_bound_s))
    return Found(best, min([beyond_s, best.value_s(instance, busy_share), *(each[0] for each in intervals)]))


def _shortest(instance: Instance, min_nodes: int) -> _Step:
    relaxed = relaxed_step(instance, min_nodes)
    if relaxed is None:
        return _Step(None, np.inf)
    nodes = _candidates(instance, relaxed)
    smaller = instance.only(np.array(nodes))
    chosen = [place for place, node in enumerate(nodes) if place == 0 or relaxed.counts[node]]
    found = (best_in_order(smaller, order, 0.0, min_nodes) for order in _orders(smaller, chosen))
    rings = [ring for ring in found if ring is not None]
    if not rings:
        return _Step(None, relaxed.step_s)
    best = min(rings, key=partial(score, smaller, 0.0))
    best = _improved(smaller, min_nodes, best, relaxed.step_s)
    return _Step(renumbered(best, nodes), relaxed.step_s)


def _candidates(instance: Instance, relaxed: Relaxed) -> list[int]:
    """The starter, the chosen nodes, and those that would cost the least beside them."""
    usable = (instance.cap >= instance.low) & np.isfinite(instance.hop_s).sum(axis=0).astype(bool)
    chosen = relaxed.counts > 0
    # What a node would add to a step if it took the part of an average one.
    typical = max(1, instance.n_blocks // max(1, int(chosen.sum())))
    hop_s = np.where(np.eye(len(chosen), dtype=bool), np.inf, instance.hop_s)
    added_s = hop_s.min(axis=0) + hop_s.min(axis=1) + instance.overhead_s + typical * instance.block_s
    keep = chosen.copy()
    keep[[0, *instance.pins]] = True
    others = [node for node in np.argsort(added_s, kind="stable").tolist() if usable[node] and not keep[node]]
    keep[others[:SPARE_NODES]] = True
    return [0, *(node for node in np.flatnonzero(keep).tolist() if node)]


def _orders(instance: Instance, chosen: list[int]) -> Iterator[list[int]]:
    """Orders of all nodes, the starter first. Where blocks are pinned, those nodes stand in the order of their blocks."""
    others = [node for node in range(1, len(instance.low)) if node not in chosen]
    yield short_tour(instance, chosen, others)
    if instance.pins:
        return
    workers = np.argsort(instance.block_s[1:], kind="stable") + 1
    yield [0, *workers.tolist()]
    order, left = [0], set(range(1, len(instance.low)))
    while left:
        order.append(min(left, key=lambda node: (instance.hop_s[order[-1], node], node)))
        left.remove(order[-1])
    yield order


def _improved(instance: Instance, min_nodes: int, ring: Ring, bound_s: float) -> Ring:
    fastest_first = (np.argsort(instance.block_s[1:], kind="stable") + 1).tolist()
    untried = [node for node in fastest_first if node not in ring.order]
    for _ in range(PINNED_IMPROVEMENTS if instance.pins else IMPROVEMENTS):
        room = exact.EXACT_NODES - len(ring.order)
        if room < 0 or ring.step_s <= bound_s * (1 + TIE):
            break
        group, untried = untried[:room], untried[room:]
        nodes = [*ring.order, *group]
        better = exact_ring(instance.only(np.array(nodes)), 0.0, min_nodes)
        if better and better.step_s < ring.step_s * (1 - TIE):
            ring = renumbered(better, nodes)
        if not untried or not room:
            break
    return ring
