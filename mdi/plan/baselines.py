"""What other rules would do with the same devices, for comparison. Each takes the nodes in the order they are given."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from mdi.errors import LinkError, NoRoom
from mdi.plan.costs import Problem
from mdi.plan.plan import Plan
from mdi.plan.solve import manual

# Blocks on the starter and on each worker, by (blocks, nodes): the fixed tables of MDI-LLM (arXiv 2505.18164).
_MDI_LLM = {
    (12, 2): (5, 7),
    (12, 3): (2, 5, 5),
    (22, 2): (10, 12),
    (22, 3): (6, 8, 8),
    (22, 4): (4, 6, 6, 6),
    (22, 5): (2, 5, 5, 5, 5),
    (32, 2): (14, 18),
    (32, 3): (8, 12, 12),
    (32, 4): (5, 9, 9, 9),
    (32, 5): (4, 7, 7, 7, 7),
}


def alternatives(problem: Problem) -> dict[str, Plan | None]:
    """Every rule by name, in a fixed order; None where its split does not fit the memory or the links."""
    rules = {
        "best single device": best_single_device(problem),
        "uniform": uniform(problem),
        "RAM-proportional": ram_proportional(problem),
        "speed-proportional": speed_proportional(problem),
    }
    if (counts := _MDI_LLM.get((problem.model.n_blocks, len(problem.nodes)))) is not None:  # published for these sizes only
        rules["MDI-LLM table"] = _fitting(problem, [node.node_id for node in problem.nodes], counts)
    return rules


def best_single_device(problem: Problem) -> Plan | None:
    """All blocks on the one device that gives the shortest decode step, be it the starter or one worker behind it."""
    n_blocks, starter = problem.model.n_blocks, problem.nodes[0].node_id
    plans = [_fitting(problem, [starter], [n_blocks])]
    plans += [_fitting(problem, [starter, node.node_id], [0, n_blocks]) for node in problem.nodes[1:]]
    fitting = [plan for plan in plans if plan]
    return min(fitting, key=lambda plan: plan.prediction.decode_step_s, default=None)


def uniform(problem: Problem) -> Plan | None:
    """The same number for every node, the first ones taking the remainder."""
    return _proportional(problem, [Fraction(1)] * len(problem.nodes))


def ram_proportional(problem: Problem) -> Plan | None:
    """In proportion to the memory offered, as exo does."""
    return _proportional(problem, [Fraction(node.memory_bytes) for node in problem.nodes])


def speed_proportional(problem: Problem) -> Plan | None:
    """In proportion to blocks per second in decode: every stage takes about as long."""
    return _proportional(problem, [1 / Fraction(node.decode.block_s) for node in problem.nodes])


def apportion(n_blocks: int, weights: Sequence[Fraction]) -> list[int]:
    """Whole shares of `n_blocks` in proportion to `weights`: rounded down, the rest by largest remainder, ties to the first."""
    total = sum(weights)
    exact = [n_blocks * weight / total for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: n_blocks - sum(counts)]:
        counts[index] += 1
    return counts


def _proportional(problem: Problem, weights: Sequence[Fraction]) -> Plan | None:
    if not any(weights):
        return None
    counts = apportion(problem.model.n_blocks, weights)
    used = [index for index, n in enumerate(counts) if n > 0 or index == 0]
    return _fitting(problem, [problem.nodes[index].node_id for index in used], [counts[index] for index in used])


def _fitting(problem: Problem, order: Sequence[str], counts: Sequence[int]) -> Plan | None:
    try:
        return manual(problem, order, counts)
    except (NoRoom, LinkError):
        return None
