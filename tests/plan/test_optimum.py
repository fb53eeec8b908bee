"""The solvers against every possible plan, and against a second solver."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from mdi.errors import ClusterError, LinkError, UserError
from mdi.plan import exact
from mdi.plan.plan import Objective, Plan, Prediction
from mdi.plan.predict import predict
from mdi.plan.solve import solve, solve_order

TIE = 1 + 1e-12


def splits(n_blocks, limits, least) -> Iterator[tuple[int, ...]]:
    """Every way to split the blocks with `least[i] <= n <= limits[i]`."""
    if not limits:
        if n_blocks == 0:
            yield ()
        return
    for n in range(least[0], min(limits[0], n_blocks) + 1):
        for rest in splits(n_blocks - n, limits[1:], least[1:]):
            yield (n, *rest)


def every_ring(problem, min_nodes, starter_min_blocks, orders) -> Iterator[tuple[int, Prediction]]:
    """(nodes in the ring, prediction) of every ring that the rules allow."""
    for order in orders:
        limits = [problem.block_limit(index) for index in order]
        least = [min(starter_min_blocks, limits[0])] + [1] * (len(order) - 1)
        ids = [problem.nodes[index].node_id for index in order]
        for counts in splits(problem.model.n_blocks, limits, least):
            if sum(n > 0 for n in counts) >= min_nodes:
                try:
                    yield len(order), predict(problem, ids, counts)
                except LinkError:
                    continue


def any_order(problem) -> Iterator[tuple[int, ...]]:
    workers = range(1, len(problem.nodes))
    for size in range(len(problem.nodes)):
        for chosen in permutations(workers, size):
            yield (0, *chosen)


def given_order(order) -> Iterator[tuple[int, ...]]:
    for size in range(len(order)):
        for chosen in combinations(order[1:], size):
            yield (order[0], *chosen)


def value(times: Prediction, objective: Objective) -> float:
    """What the objective minimises, in seconds."""
    match objective:
        case Objective.LATENCY:
            return times.decode_step_s
        case Objective.THROUGHPUT:
            return times.bottleneck_s
        case Objective.MIXED:
            return (times.decode_step_s + times.bottleneck_s) / 2


def assert_optimal(plan: Plan, rings, *, ties: bool = True) -> None:
    """The plan's own objective, then the rules for equal plans."""
    times = plan.prediction
    if plan.objective is Objective.LATENCY:
        best = min(ring.decode_step_s for _, ring in rings)
        assert times.decode_step_s == pytest.approx(best, rel=1e-12)
        fewest = min(size for size, ring in rings if ring.decode_step_s <= best * TIE)
        assert not ties or len(plan.stages) == fewest
    elif plan.objective is Objective.MIXED:
        best = min(value(ring, plan.objective) for _, ring in rings)
        assert value(times, plan.objective) == pytest.approx(best, rel=1e-12)
        assert plan.value_s == value(times, plan.objective)
        fewest = min(size for size, ring in rings if value(ring, plan.objective) <= best * TIE)
        assert not ties or len(plan.stages) >= fewest
    else:
        best = min(ring.bottleneck_s for _, ring in rings)
        assert times.bottleneck_s == pytest.approx(best, rel=1e-12)
        equal = [(size, ring) for size, ring in rings if ring.bottleneck_s <= best * TIE]
        fewest = min(size for size, _ in equal)
        assert not ties or len(plan.stages) == fewest
        shortest = min(ring.decode_step_s for size, ring in equal if not ties or size == fewest)
        assert times.decode_step_s == pytest.approx(shortest, rel=1e-12)


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("batch", range(4))
def test_no_other_plan_is_better(random_problem, objective, batch):
    solved = 0
    for seed in range(batch * 500, batch * 500 + 500):
        problem, draw = random_problem(seed), random.Random(seed)
        wishes = {"min_nodes": draw.choice((1, 1, 2, 3)), "starter_min_blocks": draw.choice((0, 1, 1, 2))}
        rings = list(every_ring(problem, **wishes, orders=any_order(problem)))
        if not rings:
            with pytest.raises((ClusterError, UserError)):
                solve(problem, objective, **wishes)
            continue
        solved += 1
        assert_optimal(solve(problem, objective, **wishes), rings)
    assert solved > 250  # the instances are not mostly impossible


@pytest.mark.parametrize("objective", Objective)
def test_no_other_plan_in_a_given_order_is_better(random_problem, objective):
    for seed in range(5000, 5400):
        problem, draw = random_problem(seed), random.Random(seed)
        order = [0, *draw.sample(range(1, len(problem.nodes)), len(problem.nodes) - 1)]
        ids = [problem.nodes[index].node_id for index in order]
        wishes = {"min_nodes": draw.choice((1, 2, 3)), "starter_min_blocks": draw.choice((0, 1, 2))}
        rings = list(every_ring(problem, **wishes, orders=given_order(order)))
        if rings:
            assert_optimal(solve_order(problem, ids, objective, **wishes), rings, ties=False)
        else:
            with pytest.raises((ClusterError, UserError)):
                solve_order(problem, ids, objective, **wishes)


@pytest.mark.parametrize("objective", Objective)
def test_the_best_order_is_the_best_of_all_given_orders(random_problem, objective):
    """Larger than brute force reaches: the two solvers share only the cost table."""
    for seed in range(6000, 6006):
        problem = random_problem(seed, n_nodes=(6,), n_blocks=(20,))
        ids = [node.node_id for node in problem.nodes]
        plans = [solve_order(problem, [ids[0], *workers], objective) for workers in permutations(ids[1:])]
        best = min(value(plan.prediction, objective) for plan in plans)
        assert value(solve(problem, objective).prediction, objective) == pytest.approx(best, rel=1e-12)


def smallest_bottleneck_by_milp(problem) -> float:
    """Variables: T, blocks n[i], and y[i, j] = 1 where the ring goes from node i to the later node j (or back to the starter).

    A node is in the ring when it is entered. All nodes are taken in their order; the starter keeps a block.
    """
    size, n_blocks = len(problem.nodes), problem.model.n_blocks
    edges = [(i, j) for i in range(size) for j in [*range(i + 1, size), size]]  # node `size` is the starter, on return
    columns = 1 + size + len(edges)
    rows, least, most = [], [], []

    def constrain(entries, low, high):
        row = np.zeros(columns)
        for column, value in entries:
            row[column] += value
        rows.append(row), least.append(low), most.append(high)

    def entered(node, sign=1.0):
        return [(1 + size + k, sign) for k, (_, j) in enumerate(edges) if j == node]

    constrain([(1 + i, 1.0) for i in range(size)], n_blocks, n_blocks)
    constrain([(1 + size + k, 1.0) for k, (i, _) in enumerate(edges) if i == 0], 1, 1)
    for i, node in enumerate(problem.nodes):
        time, limit = node.decode, problem.block_limit(i)
        if i == 0:
            constrain([(0, 1.0), (1, -time.block_s)], time.overhead_s + problem.starter.decode_s, np.inf)
            constrain([(1, 1.0)], 1, limit)
            continue
        leave = [(1 + size + k, -1.0) for k, (a, _) in enumerate(edges) if a == i]
        constrain(entered(i) + leave, 0, 0)
        constrain([(0, 1.0), (1 + i, -time.block_s), *entered(i, -time.overhead_s)], 0, np.inf)
        constrain([(1 + i, 1.0), *entered(i, -float(limit))], -np.inf, 0)
        constrain([(1 + i, 1.0), *entered(i, -1.0)], 0, np.inf)
    for k, (i, j) in enumerate(edges):
        if (i, j) != (0, size):
            link = problem.links[problem.nodes[i].node_id, problem.nodes[j % size].node_id]
            constrain([(0, 1.0), (1 + size + k, -link.decode_s)], 0, np.inf)
    result = milp(
        c=[1.0, *[0.0] * (columns - 1)],
        constraints=LinearConstraint(np.array(rows), least, most),
        integrality=[0, *[1] * (columns - 1)],
        bounds=Bounds(0, [np.inf, *[n_blocks] * size, *[1] * len(edges)]),
        options={"mip_rel_gap": 1e-9},
    )
    assert result.success, result.message
    return float(result.fun)


def test_a_mixed_integer_program_finds_no_faster_ring(random_problem):
    solved = 0
    for seed in range(7000, 7040):
        problem = random_problem(seed, n_nodes=(3, 4, 5), n_blocks=(8, 12, 16))
        try:
            plan = solve_order(problem, [node.node_id for node in problem.nodes], Objective.THROUGHPUT)
        except ClusterError:
            continue
        if problem.block_limit(0) and all(np.isfinite(link.decode_s) for link in problem.links.values()):
            solved += 1
            assert plan.prediction.bottleneck_s == pytest.approx(smallest_bottleneck_by_milp(problem), rel=1e-5)
    assert solved > 15


def shortest_step_by_milp(problem) -> float:
    """Any order: y[i, j] = 1 where the ring goes from i to j, n[i] blocks, and u[i] places along the ring that rule out other circles
    (Miller, Tucker and Zemlin). The starter keeps a block, and the ring has at least one worker.
    """
    size, n_blocks = len(problem.nodes), problem.model.n_blocks
    edges = [(i, j) for i in range(size) for j in range(size) if i != j]
    columns = 2 * size + len(edges)  # n, u, y
    rows, least, most = [], [], []

    def constrain(entries, low, high):
        row = np.zeros(columns)
        for column, value in entries:
            row[column] += value
        rows.append(row), least.append(low), most.append(high)

    cost = np.zeros(columns)
    cost[0] = problem.nodes[0].decode.block_s
    constrain([(i, 1.0) for i in range(size)], n_blocks, n_blocks)
    constrain([(0, 1.0)], 1, problem.block_limit(0))
    for i in range(size):
        into = [2 * size + k for k, (_, j) in enumerate(edges) if j == i]
        out = [2 * size + k for k, (j, _) in enumerate(edges) if j == i]
        constrain([*((column, 1.0) for column in into), *((column, -1.0) for column in out)], 0, 0)
        constrain([(column, 1.0) for column in into], 1 if i == 0 else 0, 1)
        if i:
            constrain([(i, 1.0), *((column, -float(problem.block_limit(i))) for column in into)], -np.inf, 0)
            constrain([(i, 1.0), *((column, -1.0) for column in into)], 0, np.inf)
            cost[i] = problem.nodes[i].decode.block_s
    for k, (i, j) in enumerate(edges):
        link = problem.links[problem.nodes[i].node_id, problem.nodes[j].node_id]
        cost[2 * size + k] = link.decode_s + (problem.nodes[j].decode.overhead_s if j else 0.0)
        if i and j:
            constrain([(size + i, 1.0), (size + j, -1.0), (2 * size + k, float(size))], -np.inf, size - 1)
    result = milp(
        c=cost,
        constraints=LinearConstraint(np.array(rows), least, most),
        integrality=[*[1] * size, *[0] * size, *[1] * len(edges)],
        bounds=Bounds(0, [*[n_blocks] * size, *[size] * size, *[1] * len(edges)]),
        options={"mip_rel_gap": 1e-9},
    )
    assert result.success, result.message
    return float(result.fun) + problem.starter.decode_s + problem.nodes[0].decode.overhead_s


def test_a_mixed_integer_program_finds_no_shorter_step_in_any_order(random_problem):
    solved = 0
    for seed in range(9000, 9060):
        problem = random_problem(seed, n_nodes=(4, 5, 6), n_blocks=(8, 12, 16))
        if not problem.block_limit(0) or not all(np.isfinite(link.decode_s) for link in problem.links.values()):
            continue
        try:
            plan = solve(problem, Objective.LATENCY, min_nodes=2)
        except ClusterError:
            continue
        if len(plan.stages) > 1:
            solved += 1
            assert plan.prediction.decode_step_s == pytest.approx(shortest_step_by_milp(problem), rel=1e-5)
    assert solved > 20


@pytest.mark.parametrize("objective", Objective)
def test_the_heuristic_stays_near_the_optimum(random_problem, objective, monkeypatch):
    """Above EXACT_NODES; here the limit is lowered, so that the optimum is known."""
    ratios = []
    for seed in range(8000, 8025):
        problem = random_problem(seed, n_nodes=(9,), n_blocks=(16,))
        monkeypatch.setattr(exact, "EXACT_NODES", 12)
        best = value(solve(problem, objective, min_nodes=2).prediction, objective)
        monkeypatch.setattr(exact, "EXACT_NODES", 5)
        ratios.append(value(solve(problem, objective, min_nodes=2).prediction, objective) / best)
    assert min(ratios) > 1 - 1e-12
    assert sum(ratio < 1 + 1e-9 for ratio in ratios) >= (24 if objective is Objective.LATENCY else 18)
    assert max(ratios) < 1.4


@pytest.mark.parametrize("objective", Objective)
def test_with_equal_links_the_heuristic_is_exact(home, objective, monkeypatch):
    draw = random.Random(9)
    for _ in range(5):
        problem = home(*[(f"d{index}", draw.uniform(0.5, 2.5), draw.uniform(1, 9)) for index in range(10)])
        monkeypatch.setattr(exact, "EXACT_NODES", 12)
        best = value(solve(problem, objective).prediction, objective)
        monkeypatch.setattr(exact, "EXACT_NODES", 5)
        plan = solve(problem, objective)
        assert value(plan.prediction, objective) == pytest.approx(best, rel=0.03 if objective is Objective.MIXED else 1e-12)
        assert plan.bound_s <= best * TIE
