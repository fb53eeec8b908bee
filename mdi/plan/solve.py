"""From a `Problem` to a `Plan`: the best one, the best one in a given order, or the one that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from mdi.errors import ClusterError, LinkError, NoRoom, UserError
from mdi.plan.costs import Problem
from mdi.plan.exact import Found, best_in_order
from mdi.plan.instance import instance_of
from mdi.plan.plan import Objective, Plan
from mdi.plan.predict import predict, stages
from mdi.plan.search import best_ring
from mdi.plan.text import binary_bytes, counted
from mdi.plan.wishes import Pin, pinned

MIXED_SHARE = 0.5  # as many tokens under load as alone
_MORE_ROOM = "add a node, lower --ctx, or take a smaller --quant"


def solve(
    problem: Problem,
    objective: Objective,
    *,
    min_nodes: int = 1,
    starter_min_blocks: int = 1,
    pins: Sequence[Pin] = (),
    mixed_share: float = MIXED_SHARE,
) -> Plan:
    """The best plan with blocks on at least `min_nodes` nodes: the optimum to 12 nodes, above that what `large` finds.

    `Plan.bound_s` says what no plan can beat. The starter keeps `starter_min_blocks`, or as many of them as it can hold: with none it
    has no stage, and pays both hops. Equal plans: the one with fewer nodes, then the shorter decode step, then the nodes listed first.
    `mixed_share` is that of Objective.MIXED.

    Raises NoRoom, ClusterError for too few devices, LinkError where no ring connects them, UserError for impossible numbers or pins.
    """
    _check_wishes(problem, min_nodes, starter_min_blocks)
    _check_room(problem, range(len(problem.nodes)), min_nodes)
    busy_share = _busy_share(objective, mixed_share)
    instance = instance_of(problem, starter_min_blocks, pinned(problem, pins))
    found = best_ring(instance, busy_share, min_nodes)
    return _plan(problem, objective, busy_share, found, pinned=bool(pins))


def solve_order(
    problem: Problem,
    order: Sequence[str],
    objective: Objective,
    *,
    min_nodes: int = 1,
    starter_min_blocks: int = 1,
    pins: Sequence[Pin] = (),
    mixed_share: float = MIXED_SHARE,
) -> Plan:
    """As `solve`, for nodes (ids, the starter first) that may be passed over but not reordered. Always exact."""
    indices = _indices(problem, order)
    _check_wishes(problem, min_nodes, starter_min_blocks)
    _check_room(problem, indices, min_nodes)
    busy_share = _busy_share(objective, mixed_share)
    instance = instance_of(problem, starter_min_blocks, pinned(problem, pins))
    ring = best_in_order(instance, indices, busy_share, min_nodes)
    found = None if ring is None else Found(ring, ring.value_s(instance, busy_share))
    return _plan(problem, objective, busy_share, found, pinned=bool(pins))


def manual(problem: Problem, order: Sequence[str], counts: Sequence[int]) -> Plan:
    """The split that was asked for: `counts` blocks on the nodes `order` (ids, the starter first; it alone may have 0).

    Raises UserError for counts that are no split of the model, NoRoom naming the node that cannot hold its blocks, LinkError.
    """
    n_blocks = problem.model.n_blocks
    indices = _indices(problem, order)
    split = ",".join(str(n) for n in counts)
    if len(counts) != len(order):
        raise UserError(
            f"the split {split} is for {counted(len(counts), 'device')}, and there are {len(order)}",
            hint="give one number for each device, the starter's first",
        )
    if sum(counts) != n_blocks:
        raise UserError(f"the split {split} adds up to {sum(counts)}, not {n_blocks}", hint=f"spread {n_blocks} blocks")
    if counts[0] < 0 or any(n < 1 for n in counts[1:]):
        raise UserError(f"the split {split} gives a device no block", hint="leave that device out; only the starter may have 0")
    for index, n in zip(indices, counts, strict=True):
        node, needed_bytes = problem.nodes[index], problem.bytes_needed(index, n)
        if needed_bytes > node.memory_bytes:
            limit = problem.block_limit(index)
            raise NoRoom(
                f"{node.name} cannot hold {counted(n, 'block')}: they need {binary_bytes(needed_bytes)} "
                f"and it offers {binary_bytes(node.memory_bytes)}",
                hint=f"give {node.name} at most {counted(limit, 'block')}, lower --ctx, or take a smaller --quant",
            )
    return Plan(None, n_blocks, stages(problem, order, counts), predict(problem, order, counts))


def _indices(problem: Problem, order: Sequence[str]) -> list[int]:
    indices = [problem.index(node_id) for node_id in order]
    if not indices or indices[0] != 0 or len(set(indices)) < len(indices):
        raise UserError("the order of the devices must begin with the starter and name each once", hint="put it first")
    return indices


def _check_wishes(problem: Problem, min_nodes: int, starter_min_blocks: int) -> None:
    n_blocks = problem.model.n_blocks
    if min_nodes < 1 or starter_min_blocks < 0:
        raise UserError("a plan needs at least 1 device, and the starter at least 0 blocks", hint="give a larger number")
    kept = min(max(starter_min_blocks, 1), problem.block_limit(0))
    if max(kept, 1) + min_nodes - 1 > n_blocks:
        raise UserError(
            f"{counted(n_blocks, 'block')} cannot be spread over {min_nodes} devices with {kept} on the starter",
            hint="ask for fewer devices",
        )


def _check_room(problem: Problem, indices: Sequence[int], min_nodes: int) -> None:
    model, starter = problem.model, problem.nodes[0]
    if starter.memory_bytes < problem.starter.bytes:
        raise NoRoom(
            f"{starter.name} offers {binary_bytes(starter.memory_bytes)}, and the starter needs "
            f"{binary_bytes(problem.starter.bytes)} for embedding and head",
            hint="start from a device with more memory, or take a smaller --quant",
        )
    limits = [problem.block_limit(index) for index in indices]
    if sum(limits) < model.n_blocks:
        missing = model.n_blocks - sum(limits)
        raise NoRoom(
            f"only {sum(limits)} of {model.n_blocks} blocks fit: "
            f"{binary_bytes(missing * model.resident_block_bytes)} of memory are missing",
            hint=_MORE_ROOM,
        )
    able = sum(limit > 0 for limit in limits)
    if len(indices) < min_nodes:
        raise ClusterError(
            f"a plan over {min_nodes} devices was asked for, and there are {len(indices)}",
            hint="type `mdi node start` on another device, or ask for fewer",
        )
    if able < min_nodes:
        raise NoRoom(f"a plan over {min_nodes} devices was asked for, and only {able} can hold a block", hint=_MORE_ROOM)


def _busy_share(objective: Objective, mixed_share: float) -> float:
    if not 0 <= mixed_share <= 1:
        raise UserError(f"a share of {mixed_share} of the tokens is not possible", hint="choose a number from 0 to 1")
    return objective.busy_share(mixed_share)


def _plan(problem: Problem, objective: Objective, busy_share: float, found: Found | None, *, pinned: bool) -> Plan:
    if found is None and pinned:
        raise ClusterError("no ring holds the pinned blocks where they were asked for", hint="pin fewer blocks, or add a node")
    if found is None:
        raise LinkError(
            "no ring connects enough of the devices", hint="put the devices on one network, and measure the links again"
        )
    ring = found.ring
    order = [problem.nodes[index].node_id for index in ring.order]
    prediction = predict(problem, order, ring.counts)
    return Plan(objective, problem.model.n_blocks, stages(problem, order, ring.counts), prediction, found.bound_s, busy_share)
