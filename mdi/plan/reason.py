"""One sentence: why this plan and not the obvious other one."""

from __future__ import annotations

from collections.abc import Sequence

from mdi.errors import MdiError
from mdi.plan.baselines import best_single_device
from mdi.plan.costs import Problem
from mdi.plan.plan import Objective, Plan
from mdi.plan.solve import solve
from mdi.plan.text import counted, milliseconds
from mdi.plan.wishes import Pin


def why(problem: Problem, plan: Plan, pins: Sequence[Pin] = ()) -> str:
    """A whole sentence. For a single device it solves once more, over two, to have something to compare with."""
    if plan.objective is None:
        return f"The split was given; it is bounded by {plan.prediction.bottleneck}."
    if pins:
        return _why_pinned(problem, plan)
    if len(problem.nodes) == 1:
        return f"{plan.stages[0].name} is the only device."
    if plan.objective is Objective.MIXED:
        return _why_mixed(problem, plan)
    if plan.objective is Objective.THROUGHPUT:
        return _why_throughput(problem, plan)
    working = [stage for stage in plan.stages if len(stage.blocks)]
    if len(working) > 1:
        return _why_split(problem, plan)
    return _why_alone(problem, plan, working[0].name)


def _why_pinned(problem: Problem, plan: Plan) -> str:
    """Against the best plan without pins."""
    least = 1 if problem.block_limit(0) > 0 else 0
    free = solve(problem, plan.objective or Objective.LATENCY, starter_min_blocks=least, mixed_share=plan.busy_share)
    ours, theirs = milliseconds(plan.value_s), milliseconds(free.value_s)
    if plan.value_s <= free.value_s * (1 + 1e-9):
        return f"The pinned blocks cost nothing: without pins a token would take {theirs} too."
    return f"This is the best that the pinned blocks allow: {ours} a token, {theirs} without pins."


def _why_mixed(problem: Problem, plan: Plan) -> str:
    single = best_single_device(problem)
    ours = f"{plan.busy_share:.0%} of the tokens under load and the rest alone take {milliseconds(plan.value_s)} on average"
    if single is None:
        return f"No single device holds all {problem.model.n_blocks} blocks; {ours}."
    times = single.prediction
    theirs = (1 - plan.busy_share) * times.decode_step_s + plan.busy_share * times.bottleneck_s
    return f"{ours[0].upper()}{ours[1:]}, against {milliseconds(theirs)} on {_holder(single)} alone."


def _why_throughput(problem: Problem, plan: Plan) -> str:
    single, times = best_single_device(problem), plan.prediction
    if single is None:
        return f"No single device holds all {problem.model.n_blocks} blocks; a full ring is bounded by {times.bottleneck}."
    ours, theirs = (f"{other.prediction.throughput_tokens_per_s:.1f} tok/s" for other in (plan, single))
    if single.counts == plan.counts and single.node_ids == plan.node_ids:
        return f"{_holder(single)} alone gives the most, {ours}: no ring has a faster slowest stage or hop."
    return (
        f"A full ring of {counted(len(plan.stages), 'device')} gives {ours} against {theirs} on {_holder(single)} alone; "
        f"it is bounded by {times.bottleneck}."
    )


def _why_split(problem: Problem, plan: Plan) -> str:
    single = best_single_device(problem)
    if single is None:
        hops = f", so each token also pays {milliseconds(sum(plan.prediction.hop_decode_s))} of hops"
        return f"No single device holds all {problem.model.n_blocks} blocks{hops}."
    ours, theirs = (milliseconds(other.prediction.decode_step_s) for other in (plan, single))
    if plan.prediction.decode_step_s <= single.prediction.decode_step_s:
        return f"The split takes {ours} a token against {theirs} on {_holder(single)} alone, hops included."
    rule = "more than one device was asked for" if len(single.stages) == 1 else "the starter was to keep blocks of its own"
    return f"{_holder(single)} alone would take {theirs} a token against {ours}, but {rule}."


def _why_alone(problem: Problem, plan: Plan, name: str) -> str:
    took = milliseconds(plan.prediction.decode_step_s)
    if len(plan.stages) == 2:
        own, other = (problem.nodes[problem.index(stage.node_id)].decode.block_s for stage in plan.stages)
        hops = milliseconds(sum(plan.prediction.hop_decode_s))
        if problem.block_limit(0) < problem.model.n_blocks:
            return f"{name} holds all the blocks, which {plan.stages[0].name} cannot; the way there and back costs {hops}."
        starter = plan.stages[0].name
        return f"{name} does all the blocks {own / other:.1f}x as fast as {starter} would, which outweighs {hops} of hops."
    try:
        ring = solve(problem, Objective.LATENCY, min_nodes=2)
    except MdiError:
        return f"{name} holds all the blocks, and no other device can help."
    hops = milliseconds(sum(ring.prediction.hop_decode_s))
    return (
        f"{name} alone is fastest, {took} a token: the best split takes {milliseconds(ring.prediction.decode_step_s)}, "
        f"{hops} of it hops{_slower_helper(problem, ring)}."
    )


def _slower_helper(problem: Problem, ring: Plan) -> str:
    nodes = [problem.nodes[problem.index(node_id)] for node_id in ring.node_ids]
    helper = max(nodes[1:], key=lambda node: node.decode.block_s)
    ratio = helper.decode.block_s / nodes[0].decode.block_s
    return f", and {helper.name}'s blocks take {ratio:.1f}x as long" if ratio >= 1.05 else ""


def _holder(single: Plan) -> str:
    return single.stages[-1].name
