"""Which solver for which size.

Up to `EXACT_NODES` usable nodes the answer is the optimum (`exact`). Above that it is what `large` finds, beside a bound that no ring
can beat.
"""

from __future__ import annotations

import numpy as np

from mdi.plan import exact
from mdi.plan.exact import Found, exact_ring, renumbered
from mdi.plan.instance import Instance
from mdi.plan.large import near_best_ring


def best_ring(instance: Instance, busy_share: float, min_nodes: int) -> Found | None:
    """The best ring with blocks on at least `min_nodes` nodes; None if none was found."""
    usable = [0, *(node for node in range(1, len(instance.low)) if instance.cap[node] >= instance.low[node])]
    if not instance.pins.keys() <= set(usable):
        return None
    smaller = instance.only(np.array(usable))
    if len(usable) > exact.EXACT_NODES:
        found = near_best_ring(smaller, busy_share, min_nodes)
        return None if found is None else Found(renumbered(found.ring, usable), found.bound_s)
    ring = exact_ring(smaller, busy_share, min_nodes)
    return None if ring is None else Found(renumbered(ring, usable), ring.value_s(smaller, busy_share))
