"""A short way round through given nodes: insertion where it costs least, then moves of short runs, in the manner of Or (1976)."""

from __future__ import annotations

import numpy as np

from mdi.plan.instance import Floats, Instance, Ints

LONGEST_RUN = 3  # nodes that are moved together
PASSES = 4  # over all nodes; most gain nothing after the second


def short_tour(instance: Instance, chosen: list[int], others: list[int]) -> list[int]:
    """An order of all these nodes, `chosen[0]` the starter. `chosen` make the tour; `others` are put in where they cost least.

    Pinned nodes stand in the order of their blocks.
    """
    # A way that does not exist costs more than all that do: it is taken where there is no other.
    finite = np.isfinite(instance.hop_s)
    missing_s = 1.0 + 2 * len(instance.low) * float(np.max(instance.hop_s, where=finite, initial=0.0))
    hop_s = np.where(finite, instance.hop_s, missing_s)
    pinned = sorted(instance.pins.keys() - {0}, key=lambda node: instance.pins[node].start)
    order = np.array([chosen[0], *pinned], dtype=np.int64)
    farthest_first = sorted(set(chosen[1:]) - set(pinned), key=lambda node: (-hop_s[node].min(), node))
    for node in farthest_first:
        order = _inserted(hop_s, order, node)
    order = _moved(hop_s, order, frozenset(pinned))
    for node in sorted(set(others) - set(pinned)):
        order = _inserted(hop_s, order, node)
    return [int(node) for node in order]


def _inserted(hop_s: Floats, order: Ints, node: int) -> Ints:
    following = np.roll(order, -1)
    added_s = hop_s[order, node] + hop_s[node, following] - hop_s[order, following]
    return np.insert(order, int(np.argmin(added_s)) + 1, node)


def _moved(hop_s: Floats, order: Ints, fixed: frozenset[int]) -> Ints:
    """Runs of nodes go where they shorten the way, until a pass over all of them gains nothing."""
    for _ in range(PASSES):
        before_s = _length(hop_s, order)
        for length in range(1, LONGEST_RUN + 1):
            start = 1
            while start + length <= len(order):
                run = order[start : start + length]
                rest = np.concatenate([order[:start], order[start + length :]])
                if fixed.isdisjoint(run.tolist()) and len(rest) > 1:
                    following = np.roll(rest, -1)
                    added_s = hop_s[rest, run[0]] + hop_s[run[-1], following] - hop_s[rest, following]
                    place = int(np.argmin(added_s))
                    if added_s[place] < added_s[start - 1] - 1e-12:
                        order = np.insert(rest, place + 1, run)
                start += 1
        if _length(hop_s, order) >= before_s - 1e-12:
            break
    return order


def _length(hop_s: Floats, order: Ints) -> float:
    return float(hop_s[order, np.roll(order, -1)].sum())
