"""Pins and exclusions: against every possible plan, and what is said when they cannot be met."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations

import pytest

from mdi.errors import ClusterError, LinkError, NoRoom, UserError
from mdi.plan import exact
from mdi.plan.plan import BlockRange, Objective
from mdi.plan.predict import predict
from mdi.plan.solve import solve, solve_order
from mdi.plan.wishes import NO_WISHES, Pin, Wishes, permitted, pinned


def pin(node: str, first: int, last: int) -> Pin:
    return Pin(node, BlockRange(first, last + 1))


def seconds(times, objective: Objective) -> float:
    share = objective.busy_share(0.5)
    return (1 - share) * times.decode_step_s + share * times.bottleneck_s


def splits(n_blocks: int, n_stages: int):
    if n_stages == 1:
        yield (n_blocks,)
        return
    for n in range(n_blocks + 1):
        for rest in splits(n_blocks - n, n_stages - 1):
            yield (n, *rest)


def every_plan(problem, pins, min_nodes):
    """Predictions of all rings that obey the pins, by trying everything."""
    for size in range(len(problem.nodes)):
        for workers in permutations(range(1, len(problem.nodes)), size):
            order = (0, *workers)
            for counts in splits(problem.model.n_blocks, len(order)):
                if any(n < 1 for n in counts[1:]) or sum(n > 0 for n in counts) < min_nodes:
                    continue
                if any(n > problem.block_limit(index) for index, n in zip(order, counts, strict=True)):
                    continue
                if counts[0] < min(1, problem.block_limit(0)):
                    continue
                holder = [index for index, n in zip(order, counts, strict=True) for _ in range(n)]
                if all(holder[block] == problem.index(p.node) for p in pins for block in range(p.blocks.start, p.blocks.stop)):
                    try:
                        yield predict(problem, [problem.nodes[index].node_id for index in order], counts)
                    except LinkError:
                        continue


def random_pins(draw: random.Random, problem) -> list[Pin]:
    """Up to three runs of blocks on random nodes; often more than can be met."""
    pins, blocks = [], problem.model.n_blocks
    for _ in range(draw.choice((1, 1, 2, 3))):
        start = draw.randrange(blocks)
        pins.append(
            Pin(f"n{draw.randrange(len(problem.nodes))}", BlockRange(start, draw.randint(start + 1, min(blocks, start + 2))))
        )
    return pins


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("batch", range(2))
def test_no_other_plan_with_these_pins_is_better(random_problem, objective, batch):
    solved = 0
    for seed in range(20_000 + batch * 500, 20_000 + batch * 500 + 500):
        problem, draw = random_problem(seed), random.Random(seed)
        pins, min_nodes = random_pins(draw, problem), draw.choice((1, 1, 2))
        best = min((seconds(times, objective) for times in every_plan(problem, pins, min_nodes)), default=None)
        if best is None:
            with pytest.raises((ClusterError, UserError)):
                solve(problem, objective, min_nodes=min_nodes, pins=pins)
            continue
        solved += 1
        plan = solve(problem, objective, min_nodes=min_nodes, pins=pins)
        assert seconds(plan.prediction, objective) == pytest.approx(best, rel=1e-12)
        assert plan.gap == 0
        for wanted in pins:
            (stage,) = [stage for stage in plan.stages if stage.node_id == wanted.node]
            assert stage.blocks.start <= wanted.blocks.start <= wanted.blocks.stop <= stage.blocks.stop
    assert solved > 100  # the rest is mostly impossible, as it should be


@pytest.mark.parametrize("objective", Objective)
def test_pins_in_a_given_order_are_obeyed(random_problem, objective):
    """Both solvers must agree where only one order can be taken."""
    compared = 0
    for seed in range(21_000, 21_300):
        problem, draw = random_problem(seed, n_nodes=(3,)), random.Random(seed)
        pins = random_pins(draw, problem)
        try:
            plan = solve(problem, objective, pins=pins)
        except (ClusterError, UserError):
            continue
        order = [*plan.node_ids, *(node.node_id for node in problem.nodes if node.node_id not in plan.node_ids)]
        again = solve_order(problem, order, objective, pins=pins)
        compared += 1
        assert seconds(again.prediction, objective) == pytest.approx(seconds(plan.prediction, objective), rel=1e-12)
    assert compared > 50


@pytest.mark.parametrize("objective", Objective)
def test_above_the_exact_size_pins_hold_and_the_bound_is_one(random_problem, objective, monkeypatch):
    solved = 0
    for seed in range(22_000, 22_120):
        problem, draw = random_problem(seed, n_nodes=(6,), n_blocks=(8,)), random.Random(seed)
        pins = random_pins(draw, problem)
        monkeypatch.setattr(exact, "EXACT_NODES", 12)
        try:
            best = seconds(solve(problem, objective, pins=pins).prediction, objective)
        except (ClusterError, UserError):
            continue
        monkeypatch.setattr(exact, "EXACT_NODES", 4)
        try:
            plan = solve(problem, objective, pins=pins)
        except ClusterError:
            continue  # the heuristic may miss the one ring there is
        solved += 1
        assert plan.bound_s <= best * (1 + 1e-12) <= seconds(plan.prediction, objective) * (1 + 2e-12)
        for wanted in pins:
            (stage,) = [stage for stage in plan.stages if stage.node_id == wanted.node]
            assert stage.blocks.start <= wanted.blocks.start <= wanted.blocks.stop <= stage.blocks.stop
    assert solved > 30


def test_a_pin_moves_blocks_to_where_they_were_wanted(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15))
    plan = solve(problem, Objective.LATENCY, pins=[pin("pi", 28, 31)])
    assert plan.counts == (28, 4)
    middle = solve(home(("laptop", 8, 3), ("desktop", 16, 1), ("pi", 4, 15)), Objective.LATENCY, pins=[pin("pi", 10, 11)])
    assert [(stage.name, stage.blocks.start, stage.blocks.stop) for stage in middle.stages] == [
        ("laptop", 0, 10), ("pi", 10, 12), ("desktop", 12, 32),
    ]  # fmt: skip


def test_two_pins_of_a_node_mean_all_between(home):
    problem = home(("laptop", 8, 3), ("pi", 4, 15))
    assert pinned(problem, [pin("pi", 20, 21), pin("pi", 30, 30)]) == {1: BlockRange(20, 31)}
    assert pinned(problem, [pin("laptop", 3, 4)]) == {0: BlockRange(0, 5)}


@pytest.mark.parametrize(
    ("pins", "error", "message"),
    [
        ([pin("attic", 0, 1)], UserError, "no node is called 'attic'"),
        ([pin("pi", 30, 32)], UserError, "blocks 30-32 are pinned to pi, and the model has 0-31"),
        ([pin("pi", 4, 8), pin("laptop", 8, 9)], UserError, "block 4 is pinned to both laptop and pi"),
        ([pin("pi", 0, 20)], NoRoom, "pi cannot hold the pinned blocks 0-20: it has room for 15 blocks"),
    ],
)
def test_pins_that_cannot_be_are_refused(home, pins, error, message):
    with pytest.raises(error, match=message) as caught:
        solve(home(("laptop", 8, 3), ("pi", 2, 15)), Objective.LATENCY, pins=pins)
    assert caught.value.hint


def test_the_first_block_of_a_worker_leaves_the_starter_none(home):
    with pytest.raises(ClusterError, match="no ring holds the pinned blocks"):
        solve(home(("laptop", 8, 3), ("pi", 4, 15)), Objective.LATENCY, pins=[pin("pi", 0, 1)])
    plan = solve(home(("laptop", 8, 3), ("pi", 8, 15)), Objective.LATENCY, pins=[pin("pi", 0, 1)], starter_min_blocks=0)
    assert plan.counts == (0, 32)


def test_who_must_not_take_part_does_not(home):
    problem = home(("laptop", 3, 3), ("desktop", 16, 1), ("phone", 4, 15))
    assert permitted(problem, NO_WISHES) is problem
    smaller = permitted(problem, Wishes(excluded=("desktop",)))
    assert [node.name for node in smaller.nodes] == ["laptop", "phone"]
    by_id = permitted(problem, Wishes(excluded=("id-desk",)))
    assert by_id == smaller
    with pytest.raises(UserError, match="no node is called 'tv'") as caught:
        permitted(problem, Wishes(excluded=("tv",)))
    assert "laptop, desktop, phone" in caught.value.hint


def test_battery_is_asked_for_by_the_device(home):
    problem = home(("laptop", 8, 3), ("desktop", 16, 1), ("phone", 4, 15))
    nodes = tuple(replace(node, on_battery=node.name != "desktop") for node in problem.nodes)
    problem = replace(problem, nodes=nodes)
    smaller = permitted(problem, Wishes(mains_only=True))
    assert [node.name for node in smaller.nodes] == ["laptop", "desktop"]
    assert smaller.block_limit(0) == 0  # the starter stays, without blocks
    assert solve(smaller, Objective.LATENCY).counts == (0, 32)
