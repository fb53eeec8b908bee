"""The ring with the shortest step for nodes in a given order: exact over node choice and counts, for hundreds of nodes.

`f(j, l)` is the shortest way to have done the first `l` blocks with `j` the last node in use:

    f(j, l) = min over i before j and n of  f(i, l - n) + hop(i, j) + stage(j, n)

A node that is passed over costs neither stage nor hop. Split into `min over i`, then `min over n`, this takes M^2 L + M L^2
steps for M nodes and L blocks. With pins, stage(j, n) also depends on where
the stage begins (`pinned`). Where at least N nodes must hold blocks, the number used so far, up to N, is a third dimension.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mdi.plan.instance import Floats, Instance, Ring
from mdi.plan.pinned import Stages


def shortest_in_order(instance: Instance, min_nodes: int) -> Ring | None:
    """The shortest step for the instance's nodes in the order they are in; None if they cannot hold the blocks."""
    stage_s = instance.stage_s()
    pinned = Stages.of(instance) if instance.pins else None
    nodes, width = stage_s.shape
    top = min_nodes if min_nodes > 1 else 0  # one node is always in use: then there is nothing to count
    way_s = np.full((nodes, top + 1, width), np.inf)
    own_s = stage_s[0] if pinned is None else pinned.cost_s[0, :, 0]
    way_s[0, 0, 0] = own_s[0]
    way_s[0, min(1, top), 1:] = own_s[1:]
    for node in range(1, nodes):
        arrived_s = (way_s[:node] + instance.hop_s[:node, node, None, None]).min(axis=0)  # [used, blocks]
        arrived_s = _one_more(arrived_s)
        way_s[node] = _then(arrived_s, stage_s[node]) if pinned is None else pinned.after(arrived_s, node)

    closed_s = way_s[:, top, -1] + instance.hop_s[:, 0]  # the starter's hop to itself is 0
    last = int(np.argmin(closed_s))
    if not np.isfinite(closed_s[last]):
        return None
    return _trace(way_s, stage_s, pinned, instance.hop_s, last, float(closed_s[last]))


def _one_more(used_s: Floats) -> Floats:
    """Shift [used, ...] by the node about to be used; the last row means "that many or more"."""
    if len(used_s) == 1:
        return used_s
    more_s = np.full_like(used_s, np.inf)
    more_s[1:] = used_s[:-1]
    more_s[-1] = np.minimum(used_s[-2], used_s[-1])
    return more_s


def _then(before_s: Floats, stage_s: Floats) -> Floats:
    """min over n of before[:, l - n] + stage[n], for every l: [used, blocks]."""
    width = len(stage_s)
    padded_s = np.concatenate([np.full((len(before_s), width - 1), np.inf), before_s], axis=1)
    windows_s = sliding_window_view(padded_s, width, axis=1)  # [used, l, l - width + 1 .. l]
    shortest_s: Floats = (windows_s + stage_s[::-1]).min(axis=2)
    return shortest_s


def _trace(way_s: Floats, stage_s: Floats, pinned: Stages | None, hop_s: Floats, last: int, step_s: float) -> Ring:
    """Walk the table backwards, finding again which step gave each value."""
    order = [last]
    counts: list[int] = []
    used, done = way_s.shape[1] - 1, way_s.shape[2] - 1
    while last > 0:
        came_from = (used,) if way_s.shape[1] == 1 else (used - 1, used) if used == way_s.shape[1] - 1 else (used - 1,)
        n = np.arange(1, done + 1)
        cost_s = stage_s[last, n] if pinned is None else pinned.cost_s[last, n, done - n]
        # [before, used before, n]
        options_s = way_s[:last, came_from][:, :, done - n] + hop_s[:last, last, None, None] + cost_s
        before, which, fewer = np.unravel_index(np.argmin(options_s), options_s.shape)
        last, used = int(before), came_from[int(which)]
        counts.insert(0, int(n[fewer]))
        done -= counts[0]
        order.insert(0, last)
    return Ring(tuple(order), (done, *counts), step_s)
