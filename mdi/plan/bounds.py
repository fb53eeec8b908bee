"""What no ring can beat: lower bounds for rings of too many nodes to be searched exactly.

Step. A ring enters every node that it uses, and leaves it. Take any prices with `out[i] + into[j] <= hop(i, j)` for all pairs, and charge
each used node `out[i] + into[i]` in place of its real hops: those of any ring cost at least that. (These are the dual prices of the
assignment problem; links that cost what both their ends add are charged in full.) What is left is the choice of nodes and counts
without any order, which has an exact solution in M L^2 steps: `W(l)`, the cheapest way for some of the workers to hold `l` blocks.

Slowest part. A ring whose slowest part takes at most T uses nodes that can be reached from the starter, and reach it, over hops of at
most T; together they hold all blocks within T each. The smallest T for which there are such nodes is a bound.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mdi.plan.instance import Bools, Floats, Instance, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Relaxed:
    """A bound on the step, and the choice that reaches it when hops cost only what they are charged: blocks by node, 0 is unused."""

    step_s: float
    counts: Ints  # [nodes]


def relaxed_step(instance: Instance, min_nodes: int) -> Relaxed | None:
    """The better of two bounds; None where not even the relaxed problem has a solution."""
    found = [_choose(instance, charge_s, min_nodes) for charge_s in _charges(instance)]
    solved = [relaxed for relaxed in found if relaxed is not None]
    return max(solved, key=lambda relaxed: relaxed.step_s) if len(solved) == len(found) else None


def _charges(instance: Instance) -> tuple[Floats, Floats]:
    """Two vectors of prices, each `out + into` by node: begun with half of the cheapest way out, and with nothing."""
    usable = instance.cap >= instance.low
    ways = usable[:, None] & usable[None, :] & ~np.eye(len(usable), dtype=bool)
    hop_s = np.where(ways, instance.hop_s, np.inf)

    def prices(out_s: Floats) -> Floats:
        into_s = (hop_s - out_s[:, None]).min(axis=0)
        into_s = np.where(np.isfinite(into_s), into_s, np.inf)
        finite_s = np.where(np.isfinite(into_s), into_s, 0.0)  # nobody enters such a node: it is out of the problem
        out_s = (hop_s - finite_s[None, :]).min(axis=1)
        charge_s: Floats = out_s + into_s
        return charge_s

    cheapest_s = hop_s.min(axis=1)
    return prices(np.where(np.isfinite(cheapest_s), cheapest_s / 2, 0.0)), prices(np.zeros(len(usable)))


def slowest_bound(instance: Instance, min_nodes: int) -> float:
    """No ring has a faster slowest part; infinite where there is no ring."""
    bounds_s = instance.bounds_s()
    first = bisect_left(bounds_s, True, key=lambda bound_s: _could_hold(instance.within(bound_s), min_nodes))
    return float(bounds_s[first]) if first < len(bounds_s) else np.inf


def _could_hold(instance: Instance, min_nodes: int) -> bool:
    usable = instance.cap >= np.maximum(instance.low, 1)
    if instance.cap[0] < instance.low[0]:
        return False
    ways = np.isfinite(instance.hop_s)
    ways[:, ~usable] = False
    ways[:, 0] = np.isfinite(instance.hop_s[:, 0])
    ways[~usable & (np.arange(len(usable)) > 0)] = False
    ring = _reached(ways) & _reached(ways.T)
    held = np.where(ring & usable, instance.cap, 0)
    pinned = all(ring[node] and usable[node] for node in instance.pins)
    return bool(pinned and held.sum() >= instance.n_blocks and (held > 0).sum() >= min_nodes)


def _reached(ways: Bools) -> Bools:
    """Nodes that can be reached from node 0 over `ways` [from, to]."""
    reached = np.zeros(len(ways), dtype=bool)
    reached[0] = True
    newest = reached
    while newest.any():
        newest = ways[newest].any(axis=0) & ~reached
        reached = reached | newest
    return reached


def _choose(instance: Instance, charge_s: Floats, min_nodes: int) -> Relaxed | None:
    """The best choice with so charged hops. At least `min_nodes` by a reward for each node in use, which is paid back at the end:

    min over |S| >= m of cost(S)  >=  min over all S of cost(S) + reward * (m - |S|)    for any reward >= 0.
    """
    relaxed = _fill(instance, charge_s, 0.0)
    if relaxed is None or (relaxed.counts > 0).sum() >= min_nodes:
        return relaxed
    low_s, high_s = (
        0.0,
        float(np.max(instance.overhead_s) + instance.n_blocks * np.max(instance.block_s))
        + float(np.max(charge_s, where=np.isfinite(charge_s), initial=0.0)),
    )
    best = relaxed
    for _ in range(_REWARD_STEPS):
        reward_s = (low_s + high_s) / 2
        relaxed = _fill(instance, charge_s, reward_s)
        if relaxed is None:
            break
        step_s = relaxed.step_s + reward_s * min_nodes
        enough = (relaxed.counts > 0).sum() >= min_nodes
        if enough or step_s > best.step_s:
            best = Relaxed(max(step_s, best.step_s), relaxed.counts)
        low_s, high_s = (low_s, reward_s) if enough else (reward_s, high_s)
    return best


_REWARD_STEPS = 8  # halvings of the interval of rewards: any reward gives a bound, this many give a good one


def _fill(instance: Instance, charge_s: Floats, reward_s: float) -> Relaxed | None:
    """The cheapest nodes and counts, each node in use costing its charge and giving the reward."""
    width = instance.n_blocks + 1
    workers = _useful(instance, charge_s)
    if not instance.pins.keys() <= {0, *workers}:
        return None
    held_s = np.full((len(workers) + 1, width), np.inf)  # W after the first so many workers
    held_s[0, 0] = 0.0
    for place, j in enumerate(workers):
        fixed_s = charge_s[j] + instance.overhead_s[j] - reward_s
        used_s = _with(held_s[place], int(instance.low[j]), int(instance.cap[j]), float(instance.block_s[j])) + fixed_s
        held_s[place + 1] = used_s if j in instance.pins else np.minimum(held_s[place], used_s)
    own_s = instance.stage_s()[0] - np.where(np.arange(width) > 0, reward_s, 0.0)
    others_s = held_s[-1, ::-1].copy()
    others_s[:-1] += charge_s[0]  # no hop for a starter that holds all
    total_s = own_s + others_s
    own = int(np.argmin(total_s))
    if not np.isfinite(total_s[own]):
        return None
    counts = np.zeros(len(instance.low), dtype=np.int64)
    counts[0], left = own, instance.n_blocks - own
    for place in range(len(workers) - 1, -1, -1):
        j = workers[place]
        if j not in instance.pins and held_s[place + 1, left] == held_s[place, left]:
            continue
        n = np.arange(instance.low[j], min(instance.cap[j], left) + 1)
        counts[j] = n[np.argmin(held_s[place, left - n] + n * instance.block_s[j])]
        left -= counts[j]
    return Relaxed(float(total_s[own]), counts)


def _useful(instance: Instance, charge_s: Floats) -> list[int]:
    """Workers that may be in a best choice: all but those for which there are as many better ones as could ever be used."""
    usable = (instance.cap >= instance.low) & np.isfinite(charge_s)
    usable[0] = False
    workers = np.flatnonzero(usable)
    fixed_s, block_s, cap = (charge_s + instance.overhead_s)[workers], instance.block_s[workers], instance.cap[workers]
    no_worse = (fixed_s[:, None] <= fixed_s) & (block_s[:, None] <= block_s) & (cap[:, None] >= cap)
    earlier = np.arange(len(workers))[:, None] < np.arange(len(workers))
    better = no_worse & (~no_worse.T | earlier)  # of equal ones, those listed first
    kept = better.sum(axis=0) < instance.n_blocks
    kept |= np.isin(workers, list(instance.pins))
    return [int(worker) for worker in workers[kept]]


def _with(held_s: Floats, low: int, cap: int, block_s: float) -> Floats:
    """min over low <= n <= cap of held[l - n] + n * block_s, for every l."""
    width = len(held_s)
    cap = min(cap, width - 1)
    padded_s = np.concatenate([np.full(cap, np.inf), held_s[: width - low] if low else held_s])
    windows_s = sliding_window_view(padded_s, cap - low + 1)[:width]  # element l: held[l - cap .. l - low]
    costs_s = np.arange(cap, low - 1, -1) * block_s
    least_s: Floats = (windows_s[:width] + costs_s).min(axis=1)
    return least_s
