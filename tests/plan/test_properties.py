"""What must hold for any cluster, whatever the optimum is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.errors import ClusterError
from mdi.plan.baselines import alternatives
from mdi.plan.costs import LinkCost, Problem
from mdi.plan.plan import Objective, Prediction
from mdi.plan.solve import solve

seeds = st.integers(10_000, 20_000)
objectives = st.sampled_from(list(Objective))
bounded = settings(max_examples=60, deadline=None, derandomize=True)


def value(problem: Problem, objective: Objective, **wishes) -> float:
    """What the objective minimises; infinite where there is no plan."""
    try:
        times = solve(problem, objective, **wishes).prediction
    except ClusterError:
        return float("inf")
    return seconds(times, objective)


def seconds(times: Prediction, objective: Objective) -> float:
    share = objective.busy_share(0.5)
    return (1 - share) * times.decode_step_s + share * times.bottleneck_s


@bounded
@given(seeds, objectives, st.integers(0, 3), st.integers(1, 60))
def test_more_memory_never_hurts(random_problem, seed, objective, which, more):
    before = random_problem(seed)
    index = which % len(before.nodes)
    grown = replace(before.nodes[index], memory_bytes=before.nodes[index].memory_bytes + more)
    after = replace(before, nodes=(*before.nodes[:index], grown, *before.nodes[index + 1 :]))
    assert value(after, objective, starter_min_blocks=0) <= value(before, objective, starter_min_blocks=0) * (1 + 1e-12)


@bounded
@given(seeds, objectives, st.floats(0, 1))
def test_faster_links_never_hurt(random_problem, seed, objective, factor):
    before = random_problem(seed)
    links = {pair: LinkCost(link.decode_s * factor, 1.0) for pair, link in before.links.items() if link.decode_s < 1}
    after = replace(before, links={**before.links, **links})
    assert value(after, objective) <= value(before, objective) * (1 + 1e-12)


@bounded
@given(seeds, objectives)
def test_another_device_never_hurts(random_problem, seed, objective):
    after = random_problem(seed, n_nodes=(2, 3, 4))
    before = replace(after, nodes=after.nodes[:-1])
    assert value(after, objective) <= value(before, objective) * (1 + 1e-12)


@bounded
@given(seeds, objectives, st.integers(1, 4))
def test_asking_for_more_devices_never_helps(random_problem, seed, objective, min_nodes):
    problem = random_problem(seed, n_blocks=(5,))
    if min_nodes <= len(problem.nodes):
        assert value(problem, objective, min_nodes=min_nodes) >= value(problem, objective) * (1 - 1e-12)


@bounded
@given(seeds, objectives)
def test_no_rule_of_thumb_is_better(random_problem, seed, objective):
    problem = random_problem(seed)
    best = value(problem, objective, starter_min_blocks=0)
    for plan in alternatives(problem).values():
        if plan:
            assert best <= seconds(plan.prediction, objective) * (1 + 1e-12)


@bounded
@given(seeds, objectives)
def test_each_objective_is_best_at_its_own(random_problem, seed, objective):
    problem = random_problem(seed)
    try:
        latency, throughput = (solve(problem, each).prediction for each in (Objective.LATENCY, Objective.THROUGHPUT))
    except ClusterError:
        return
    assert latency.decode_tokens_per_s >= throughput.decode_tokens_per_s * (1 - 1e-12)
    assert throughput.throughput_tokens_per_s >= latency.throughput_tokens_per_s * (1 - 1e-12)


@bounded
@given(seeds, objectives)
def test_every_stage_fits_its_node_and_solving_again_gives_the_same(random_problem, seed, objective):
    problem = random_problem(seed)
    try:
        plan = solve(problem, objective)
    except ClusterError:
        return
    for stage in plan.stages:
        assert stage.bytes <= problem.nodes[problem.index(stage.node_id)].memory_bytes
    plan.check_integrity()
    assert solve(problem, objective) == plan


@pytest.mark.parametrize("objective", Objective)
def test_equal_devices_are_taken_in_the_order_they_are_listed(home, objective):
    problem = home(("a", 2, 3), ("b", 2, 3), ("c", 2, 3), ("d", 2, 3))
    names = [stage.name for stage in solve(problem, objective).stages]
    assert names == sorted(names)
