"""Above the size that is searched exactly: what is found, and the bound that it is compared with."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mdi.errors import ClusterError, InternalError, UserError
from mdi.plan import exact
from mdi.plan.bounds import relaxed_step, slowest_bound
from mdi.plan.costs import LinkCost, LinkTable, ModelCost, NodeCost, Problem, StageTime, StarterCost
from mdi.plan.instance import instance_of
from mdi.plan.plan import Objective
from mdi.plan.solve import solve
from mdi.plan.tour import short_tour


def seconds(times, objective: Objective) -> float:
    share = objective.busy_share(0.5)
    return (1 - share) * times.decode_step_s + share * times.bottleneck_s


def crowd(n_nodes: int, n_blocks: int, held: tuple[int, int], links: str, seed: int = 1) -> Problem:
    """Random devices that hold `held` blocks each. Links: all alike, the sum of what both ends add, or anything."""
    draw = np.random.default_rng(seed)
    nodes = []
    for index in range(n_nodes):
        block_s, n = float(draw.uniform(1e-3, 30e-3)), int(draw.integers(*held))
        nodes.append(
            NodeCost(f"n{index}", f"node {index}", 12 + 10 * n, StageTime(4e-4, block_s), StageTime(1e-3, 8 * block_s))
        )
    ends_s = draw.uniform(1e-4, 5e-3, n_nodes)
    hop_s = {
        "alike": np.full((n_nodes, n_nodes), 6e-4),
        "ends": ends_s[:, None] + ends_s[None, :],
        "any": draw.uniform(1e-4, 1e-2, (n_nodes, n_nodes)),
    }[links]
    table = LinkTable(tuple(node.node_id for node in nodes), hop_s, 10 * hop_s)
    model = ModelCost(n_blocks, 6, 2, ctx=2, slots=1, stage_bytes=5, chunk_tokens=32)
    return Problem(model, tuple(nodes), StarterCost(5e-3, 5e-3, 2), table)


@pytest.mark.parametrize("objective", Objective)
def test_the_bound_is_one_and_the_heuristic_is_near_it(random_problem, objective, monkeypatch):
    """Against the optimum of thousands of small instances that the heuristic is made to treat as large."""
    solved, lost = 0, 0
    for seed in range(30_000, 30_600):
        problem, draw = random_problem(seed, n_nodes=(3, 4, 5), n_blocks=(4, 6)), random.Random(seed)
        min_nodes = draw.choice((1, 1, 2, 3))
        monkeypatch.setattr(exact, "EXACT_NODES", 12)
        try:
            best = seconds(solve(problem, objective, min_nodes=min_nodes).prediction, objective)
        except (ClusterError, UserError):
            continue
        monkeypatch.setattr(exact, "EXACT_NODES", 2)
        try:
            plan = solve(problem, objective, min_nodes=min_nodes)
        except ClusterError:
            lost += 1
            continue
        solved += 1
        assert plan.bound_s <= best * (1 + 1e-12)
        assert plan.value_s >= best * (1 - 1e-12)
        assert plan.gap >= 0
    assert solved > 300
    assert lost < solved / 50  # only where hardly any ring connects the nodes


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize(("links", "gap"), [("alike", 0.01), ("ends", 0.02), ("any", 0.15)])
@pytest.mark.parametrize("held", [(0, 3), (0, 20), (60, 127)])
def test_a_thousand_devices_are_planned_near_the_bound(objective, links, gap, held):
    plan = solve(crowd(1000, 126, held, links), objective)
    assert sum(plan.counts) == 126
    assert plan.gap <= (gap if objective is not Objective.THROUGHPUT else 0.01)


def test_the_relaxed_step_is_the_real_one_where_order_does_not_matter():
    for links in ("alike", "ends"):
        instance = instance_of(crowd(11, 24, (2, 9), links), 1)
        found = exact.exact_ring(instance, 0.0, 1)
        assert relaxed_step(instance, 1).step_s == pytest.approx(found.step_s, rel=0.01)
        assert relaxed_step(instance, 1).step_s <= found.step_s * (1 + 1e-12)


def test_asking_for_many_nodes_raises_the_bound():
    instance = instance_of(crowd(11, 24, (10, 20), "alike"), 1)
    few, many = (relaxed_step(instance, min_nodes).step_s for min_nodes in (1, 9))
    assert few < many <= exact.exact_ring(instance, 0.0, 9).step_s * (1 + 1e-12)


def test_where_no_ring_is_possible_the_bound_says_so():
    problem = crowd(13, 24, (3, 4), "alike")
    cut = problem.links.decode_s.copy()
    cut[:, 0] = np.inf
    apart = Problem(problem.model, problem.nodes, problem.starter, LinkTable(problem.links.ids, cut, cut))
    assert slowest_bound(instance_of(apart, 1), 1) == np.inf
    assert relaxed_step(instance_of(apart, 1), 1) is None
    with pytest.raises(ClusterError):
        solve(apart, Objective.THROUGHPUT)


def test_a_tour_visits_everyone_once_and_finds_the_way_round():
    """Nodes on a circle: the shortest way is the circle itself."""
    n = 17
    angles = 2 * np.pi * np.arange(n) / n
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    hop_s = np.linalg.norm(places[:, None] - places[None, :], axis=2)
    problem = crowd(n, 24, (3, 4), "alike")
    table = LinkTable(problem.links.ids, hop_s, hop_s)
    instance = instance_of(Problem(problem.model, problem.nodes, problem.starter, table), 1)
    shuffled = random.Random(3).sample(range(1, n), n - 1)
    order = short_tour(instance, [0, *shuffled], [])
    assert sorted(order) == list(range(n))
    assert sum(hop_s[a, b] for a, b in zip(order, order[1:] + order[:1], strict=True)) == pytest.approx(n * hop_s[0, 1])


def test_links_as_a_table_are_links():
    table = LinkTable(("a", "b", "c"), np.arange(9.0).reshape(3, 3), np.arange(9.0).reshape(3, 3) * 10)
    assert len(table) == 6
    assert dict(table)["a", "c"] == LinkCost(2.0, 20.0)
    assert ("a", "a") not in table
    assert table.among(("c", "a"))["c", "a"] == table["c", "a"]
    with pytest.raises(InternalError, match="2 by 2"):
        LinkTable(("a", "b"), np.zeros((3, 3)), np.zeros((3, 3)))
