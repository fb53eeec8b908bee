"""The fewest moves against every ring of thousands of random problems."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.errors import LinkError, MdiError
from mdi.plan import moves
from mdi.plan.costs import Problem
from mdi.plan.instance import Ring, instance_of
from mdi.plan.moves import fewest_moves, moved_blocks
from mdi.plan.plan import BlockRange, Objective, Prediction
from mdi.plan.predict import predict
from mdi.plan.solve import solve
from mdi.plan.wishes import Pin, pinned, starter_min_blocks
from tests.plan.test_optimum import any_order, splits, value

TIE = 1 + 1e-12


def rings(problem: Problem, least: int, min_nodes: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Prediction]]:
    """Every ring of the problem."""
    for order in any_order(problem):
        limits = [problem.block_limit(index) for index in order]
        lows = [min(least, limits[0])] + [1] * (len(order) - 1)
        for counts in splits(problem.model.n_blocks, limits, lows):
            if sum(n > 0 for n in counts) >= min_nodes:
                try:
                    yield order, counts, predict(problem, [problem.nodes[index].node_id for index in order], counts)
                except LinkError:
                    continue


def ranges(order: tuple[int, ...], counts: tuple[int, ...]) -> dict[int, BlockRange]:
    held, start = {}, 0
    for node, n in zip(order, counts, strict=True):
        held[node] = BlockRange(start, start + n)
        start += n
    return held


def moved(order: tuple[int, ...], counts: tuple[int, ...], held: Mapping[int, BlockRange]) -> int:
    """One block after another, in the plainest way."""
    now = {(node, block) for node, blocks in held.items() for block in range(blocks.start, blocks.stop)}
    new = {(node, block) for node, blocks in ranges(order, counts).items() for block in range(blocks.start, blocks.stop)}
    return len(new - now)


def respects(pins: Mapping[int, BlockRange], order: tuple[int, ...], counts: tuple[int, ...]) -> bool:
    placed = ranges(order, counts)
    return all(
        node in placed and placed[node].start <= pin.start and pin.stop <= placed[node].stop for node, pin in pins.items()
    )


@pytest.mark.parametrize("objective", Objective)
@settings(max_examples=900, deadline=None, derandomize=True)
@given(
    st.integers(30_000, 90_000),
    st.sampled_from((1, 1, 2, 3)),
    st.sampled_from((0, 1, 2)),
    st.sampled_from((0.0, 0.03, 0.2)),
    st.booleans(),
)
def test_no_ring_that_is_good_enough_moves_fewer_blocks(random_problem, objective, seed, min_nodes, least, tolerance, with_pin):
    problem, draw = random_problem(seed), random.Random(seed)
    every = list(rings(problem, least, min_nodes))
    pins: dict[int, BlockRange] = {}
    if with_pin and every:
        order, counts, _ = draw.choice(every)
        node, blocks = draw.choice([(n, b) for n, b in ranges(order, counts).items() if len(b)])
        pins[node] = BlockRange(blocks.start if node else 0, blocks.start + draw.randint(1, len(blocks)))
        every = [ring for ring in every if respects(pins, *ring[:2])]
    if not every:
        return
    present = draw.choice(every)  # as bad as it may be
    held = ranges(*present[:2])
    best_s = min(value(times, objective) for *_, times in every)
    good = [(moved(order, counts, held), value(times, objective)) for order, counts, times in every
            if value(times, objective) <= best_s * (1 + tolerance) * TIE]  # fmt: skip
    instance = instance_of(problem, least, pins)
    found = fewest_moves(instance, held, objective.busy_share(0.5), min_nodes, best_s * (1 + tolerance))
    assert found is not None
    times = predict(problem, [problem.nodes[node].node_id for node in found.order], found.counts)
    assert respects(pins, found.order, found.counts)
    assert value(times, objective) <= best_s * (1 + tolerance) * TIE
    fewest = min(good)
    assert moved_blocks(found, held) == moved(found.order, found.counts, held) == fewest[0]
    assert value(times, objective) <= fewest[1] * TIE  # of these the best


@pytest.mark.parametrize("objective", Objective)
def test_a_plan_that_is_the_best_moves_nothing(random_problem, objective):
    for seed in range(40_000, 40_040):
        problem = random_problem(seed, n_nodes=(5, 6), n_blocks=(12, 20))
        least = starter_min_blocks(problem, ())
        try:
            plan = solve(problem, objective, starter_min_blocks=least)
        except MdiError:
            continue
        held = {problem.index(stage.node_id): stage.blocks for stage in plan.stages}
        found = fewest_moves(instance_of(problem, least), held, plan.busy_share, 1, plan.value_s * 1.01)
        assert found is not None
        assert moved_blocks(found, held) == 0


def test_a_ring_that_is_not_possible_is_not_found(home):
    problem = home(("desk", 8, 2.0), ("attic", 8, 4.0))
    best = solve(problem, Objective.LATENCY)
    instance = instance_of(problem, 1)
    assert fewest_moves(instance, {}, 0.0, 1, best.value_s * 0.99) is None
    assert fewest_moves(instance, {}, 0.0, 1, best.value_s) == Ring((0,), (32,), pytest.approx(best.value_s))


def test_equal_devices_keep_what_they_hold(home):
    """All orders of twelve devices are equally good, and so are all choices of three of them."""
    problem = home(*[(f"d{index}", 1.5, 2.0) for index in range(12)])
    best = solve(problem, Objective.LATENCY)
    assert len(best.stages) == 4
    held = {0: BlockRange(0, 6), 7: BlockRange(6, 15), 3: BlockRange(15, 24), 11: BlockRange(24, 32)}
    found = fewest_moves(instance_of(problem, 1), held, 0.0, 1, best.value_s * 1.03)
    assert found is not None
    assert moved_blocks(found, held) == 0
    assert found.order == (0, 7, 3, 11)


def test_a_table_that_would_take_too_much_memory_is_not_made(home, monkeypatch):
    problem = home(("desk", 2, 9.0), ("attic", 8, 2.0), ("shed", 8, 2.0))
    best = solve(problem, Objective.LATENCY)
    instance, held = instance_of(problem, 1), {0: BlockRange(0, 16), 1: BlockRange(16, 32)}
    assert fewest_moves(instance, held, 0.0, 1, best.value_s * 1.03) is not None
    monkeypatch.setattr(moves, "MOST_STATES", 100)
    assert fewest_moves(instance, held, 0.0, 1, best.value_s * 1.03) is None


def test_pins_are_kept(home):
    problem = home(("desk", 8, 1.0), ("attic", 8, 4.0), ("shed", 8, 4.0))
    pins = pinned(problem, (Pin("attic", BlockRange(3, 5)),))
    plan = solve(problem, Objective.LATENCY, pins=(Pin("attic", BlockRange(3, 5)),))
    held = {0: BlockRange(0, 10), 2: BlockRange(10, 32)}
    found = fewest_moves(instance_of(problem, 1, pins), held, 0.0, 1, plan.value_s * 1.03)
    assert found is not None
    assert respects(pins, found.order, found.counts)
    nothing = replace(instance_of(problem, 1, pins), cap=instance_of(problem, 1).cap * 0 + [32, 1, 32])
    assert fewest_moves(nothing, held, 0.0, 1, plan.value_s * 10) is None
