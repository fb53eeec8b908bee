"""The ring with the shortest step where some nodes must hold certain blocks: exact over node choice, order and counts.

With pins it matters where in the ring a stage lies, so the tour and the counts no longer separate as they do in `rings`:

    f(S, j, l) = shortest way through the workers S, ending at j, with the first l blocks done
               = min over n of  stage(j, n)  +  min over i of  f(S - j, i, l - n) + hop(i, j)

over those n for which j may hold the blocks [l - n, l). For `w` workers and `L` blocks: 2**w * w * L * (w + the largest cap) steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdi.plan.instance import Floats, Instance, Ring, best_choice


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """What each node's stage costs by the number of its blocks and the first of them; infinite where it must not lie."""

    cost_s: Floats  # [nodes, blocks, first block]

    @classmethod
    def of(cls, instance: Instance) -> Stages:
        barred_s = np.stack([instance.barred_s(node) for node in range(len(instance.low))])
        return cls(instance.stage_s()[:, :, None] + barred_s)

    def after(self, arrived_s: Floats, node: int) -> Floats:
        """min over n >= 1 of arrived[..., l - n] + cost(n, l - n): the ways through `node`, [..., blocks done]."""
        done_s = np.full_like(arrived_s, np.inf)
        width = arrived_s.shape[-1]
        for n in range(1, width):
            cost_s = self.cost_s[node, n, : width - n]
            if np.isfinite(cost_s).any():
                np.minimum(done_s[..., n:], arrived_s[..., : width - n] + cost_s, out=done_s[..., n:])
        return done_s


def shortest_pinned_ring(instance: Instance, min_nodes: int, *, fewest_first: bool = False) -> Ring | None:
    """As `rings.shortest_ring`, for an instance with pins."""
    search = _Search(instance)
    workers = len(instance.low) - 1
    n_workers = np.array([chosen.bit_count() for chosen in range(1 << workers)])
    ways: list[tuple[Floats, Floats]] = []
    step_s = np.full((2, 1 << workers), np.inf)
    for choice, on_starter in enumerate((1, 0)):
        own_s = search.own_s(on_starter)
        way_s = search.ways(own_s)
        ways.append((own_s, way_s))
        closed_s = (way_s[:, :, -1] + instance.hop_s[1:, 0]).min(axis=1, initial=np.inf)
        closed_s[0] = own_s[-1]
        step_s[choice] = np.where(n_workers + on_starter >= min_nodes, closed_s, np.inf)
    best = best_choice(step_s, n_workers, fewest_first=fewest_first)
    if best is None:
        return None
    choice, chosen = best
    return search.trace(*ways[choice], chosen, float(step_s[choice, chosen]))


class _Search:
    """The table f, and the way back through it. Set `s` holds worker `w` if bit `w` is set."""

    def __init__(self, instance: Instance) -> None:
        self._hop_s = instance.hop_s
        self._stages = Stages.of(instance)
        self._workers = len(instance.low) - 1

    def own_s(self, on_starter: int) -> Floats:
        """The starter's stage [blocks done]: with blocks of its own, or with none."""
        own_s = self._stages.cost_s[0, :, 0].copy()
        own_s[1:] = own_s[1:] if on_starter else np.inf
        own_s[0] = np.inf if on_starter else own_s[0]
        return own_s

    def ways(self, own_s: Floats) -> Floats:
        """f as [sets, last worker, blocks done]."""
        workers = self._workers
        way_s = np.full((1 << workers, workers, len(own_s)), np.inf)
        for worker in range(workers):
            way_s[1 << worker, worker] = self._stages.after(own_s + self._hop_s[0, worker + 1], worker + 1)
        sets = np.arange(1 << workers)
        size = ((sets[:, None] >> np.arange(workers)) & 1).sum(axis=1)
        for n in range(2, workers + 1):
            layer = sets[size == n]
            for last in range(workers):
                ending = layer[(layer >> last) & 1 == 1]
                before_s = way_s[ending ^ (1 << last)]  # [sets, worker before, blocks done]
                arrived_s = (before_s + self._hop_s[1:, last + 1, None]).min(axis=1)
                way_s[ending, last] = self._stages.after(arrived_s, last + 1)
        return way_s

    def trace(self, own_s: Floats, way_s: Floats, chosen: int, step_s: float) -> Ring:
        """Walks the table backwards, finding again which step gave each value."""
        done, onward_s = way_s.shape[-1] - 1, self._hop_s[1:, 0]
        order: list[int] = []
        counts: list[int] = []
        while chosen:
            tours_s = way_s[chosen, :, done] + onward_s
            last = len(tours_s) - 1 - int(np.argmin(tours_s[::-1]))  # of equal ones, the one in the order of the nodes
            order.insert(0, last + 1)
            chosen ^= 1 << last
            n = np.arange(1, done + 1)
            if chosen:
                arrived_s = (way_s[chosen][:, done - n] + self._hop_s[1:, last + 1, None]).min(axis=0)
            else:
                arrived_s = own_s[done - n] + self._hop_s[0, last + 1]
            counts.insert(0, int(n[np.argmin(arrived_s + self._stages.cost_s[last + 1, n, done - n])]))
            done -= counts[0]
            onward_s = self._hop_s[1:, last + 1]
        return Ring((0, *order), (done, *counts), step_s)
