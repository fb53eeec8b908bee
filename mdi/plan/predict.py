"""A ring's times, added up. Solvers optimise exactly what is computed here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from mdi.errors import InternalError, LinkError
from mdi.plan.costs import LinkCost, Problem
from mdi.plan.plan import BlockRange, Prediction, Stage
from mdi.plan.text import milliseconds


def predict(problem: Problem, order: Sequence[str], counts: Sequence[int]) -> Prediction:
    """What the ring of the nodes `order` (ids, the starter first) gives with `counts` blocks each.

    decode step = sum of the stages and hops; throughput = 1 / the slowest of them. The prompt goes round in whole chunks,
    a short last one charged in full: the first token comes after one pass, and one wait at the slowest stage or hop
    for each chunk before the last. Only the rows whose logits are wanted come back, so the last hop of a chunk is
    decode-sized. Memory is not looked at.

    Raises LinkError where a hop's link is UNREACHABLE, InternalError for anything that is not a ring of all the blocks.
    """
    nodes = [problem.nodes[problem.index(node_id)] for node_id in order]
    _check_ring(problem, order, counts)
    work = list(zip(nodes, counts, strict=True))
    stage_decode_s = [node.decode.seconds(n) for node, n in work]
    stage_prefill_s = [node.prefill.seconds(n) for node, n in work]
    stage_decode_s[0] += problem.starter.decode_s
    stage_prefill_s[0] += problem.starter.prefill_s
    hops = _hops(problem, order)
    hop_decode_s = [link.decode_s for link in hops]
    hop_prefill_s = [link.prefill_s for link in hops[:-1]] + [link.decode_s for link in hops[-1:]]

    names = [node.name for node in nodes]
    labels = [f"the stage on {name}" for name in names]
    labels += [f"the hop {here} → {there}" for here, there in pairwise([*names, names[0]])] if hops else []
    slowest_s, slowest = max(zip(stage_decode_s + hop_decode_s, labels, strict=True), key=lambda item: item[0])
    prefill_s = stage_prefill_s + hop_prefill_s
    return Prediction(
        decode_step_s=sum(stage_decode_s) + sum(hop_decode_s),
        ttft_s=sum(prefill_s) + (problem.model.prompt_chunks - 1) * max(prefill_s),
        bottleneck=f"{slowest} ({milliseconds(slowest_s)})",
        bottleneck_s=slowest_s,
        stage_decode_s=tuple(stage_decode_s),
        hop_decode_s=tuple(hop_decode_s),
        stage_prefill_s=tuple(stage_prefill_s),
        hop_prefill_s=tuple(hop_prefill_s),
    )


def stages(problem: Problem, order: Sequence[str], counts: Sequence[int]) -> tuple[Stage, ...]:
    """The same ring as stages, with the bytes that each needs."""
    result, start = [], 0
    for node_id, n in zip(order, counts, strict=True):
        index = problem.index(node_id)
        blocks = BlockRange(start, start + n)
        result.append(Stage(node_id, problem.nodes[index].name, blocks, problem.bytes_needed(index, n)))
        start += n
    return tuple(result)


def _hops(problem: Problem, order: Sequence[str]) -> list[LinkCost]:
    if len(order) == 1:
        return []
    hops = []
    for sender, receiver in pairwise([*order, order[0]]):
        link = problem.links[sender, receiver]
        if link.decode_s == math.inf:
            here, there = (problem.nodes[problem.index(node_id)].name for node_id in (sender, receiver))
            raise LinkError(f"{here} cannot reach {there}", hint="put them on one network, or choose another order")
        hops.append(link)
    return hops


def _check_ring(problem: Problem, order: Sequence[str], counts: Sequence[int]) -> None:
    if len(order) != len(counts) or not order or order[0] != problem.nodes[0].node_id:
        raise InternalError("a ring begins at the starter and has one count for each node")
    if len(set(order)) < len(order):
        raise InternalError("a node is in the ring twice")
    if counts[0] < 0 or any(n < 1 for n in counts[1:]) or sum(counts) != problem.model.n_blocks:
        raise InternalError(f"counts {list(counts)} do not split {problem.model.n_blocks} blocks")
