"""A ring's times for the load that is planned for. Solvers optimise exactly what is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mdi.plan.costs import Problem
from mdi.plan.forecast import Forecast
from mdi.plan.plan import BlockRange, Prediction, Stage
from mdi.plan.text import milliseconds


def predict(problem: Problem, order: Sequence[str], counts: Sequence[int]) -> Prediction:
    """What the ring of the nodes `order` (ids, the starter first) gives with `counts` blocks each.

    decode step = sum of the stages and hops; throughput = rows / the slowest of them; first token and prefill as in `Forecast`.
    Memory is not looked at.

    Raises LinkError where a hop's link is UNREACHABLE, InternalError for anything that is not a ring of all the blocks.
    """
    forecast, load = Forecast(problem, tuple(order), tuple(counts)), problem.load
    stage_decode_s, hop_decode_s = forecast.decode_parts_s(load.rows, load.context_tokens)
    stage_prefill_s, hop_prefill_s = forecast.prefill_parts_s(problem.model.chunk_tokens, 0)
    stage_prefill_s[0] += problem.starter.prefill_s

    names = [problem.nodes[problem.index(node_id)].name for node_id in order]
    labels = [f"the stage on {name}" for name in names]
    labels += [f"the hop {here} → {there}" for here, there in pairwise([*names, names[0]])] if hop_decode_s else []
    slowest_s, slowest = max(zip(stage_decode_s + hop_decode_s, labels, strict=True), key=lambda item: item[0])
    return Prediction(
        decode_step_s=sum(stage_decode_s) + sum(hop_decode_s),
        ttft_s=forecast.ttft_s(),
        bottleneck=f"{slowest} ({milliseconds(slowest_s)})",
        bottleneck_s=slowest_s,
        stage_decode_s=tuple(stage_decode_s),
        hop_decode_s=tuple(hop_decode_s),
        stage_prefill_s=tuple(stage_prefill_s),
        hop_prefill_s=tuple(hop_prefill_s),
        rows=load.rows,
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
