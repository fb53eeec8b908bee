"""What one ring does: batches, contexts, chunks, several conversations; against hand-made numbers and a simulation of its own."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mdi.errors import UserError
from mdi.plan.costs import MEASURED_CONTEXT, LinkCost, Load, ModelCost, NodeCost, Problem, StageTime, StarterCost
from mdi.plan.forecast import Forecast
from mdi.plan.plan import Objective
from mdi.plan.predict import predict
from mdi.plan.solve import solve


@pytest.fixture
def problem() -> Problem:
    nodes = (
        NodeCost("s", "laptop", 1000, StageTime(0.001, 0.002), StageTime(0.005, 0.050), decode_kv_s=1e-6, prefill_kv_s=1e-7),
        NodeCost("w", "pi", 1000, StageTime(0.003, 0.004), StageTime(0.007, 0.100), decode_kv_s=2e-6, prefill_kv_s=4e-7),
    )
    links = {("s", "w"): LinkCost(0.005, 0.050), ("w", "s"): LinkCost(0.006, 0.060)}
    model = ModelCost(4, 10, 3, ctx=5, slots=2, stage_bytes=1, chunk_tokens=50, prompt_tokens=120)
    return Problem(model, nodes, StarterCost(0.007, 0.008, 20), links)


def test_one_row_at_the_measured_context_is_what_was_measured(problem):
    stages_s, hops_s = Forecast(problem, ("s", "w"), (1, 3)).decode_parts_s(1, MEASURED_CONTEXT)
    assert stages_s == pytest.approx([0.007 + 0.001 + 0.002, 0.003 + 3 * 0.004])
    assert hops_s == [0.005, 0.006]


def test_a_whole_chunk_at_the_start_is_what_was_measured(problem):
    stages_s, hops_s = Forecast(problem, ("s", "w"), (1, 3)).prefill_parts_s(50, 0)
    assert stages_s == pytest.approx([0.005 + 0.050, 0.007 + 3 * 0.100])
    assert hops_s == [0.050, 0.006]  # no row of a chunk comes back


def test_each_further_row_costs_the_same(problem):
    forecast = Forecast(problem, ("s",), (4,))
    one, two, three, four = (forecast.decode_step_s(rows) for rows in (1, 2, 3, 4))
    assert four - three == pytest.approx(three - two)
    assert three - two == pytest.approx(two - one)
    # overhead 4 ms and blocks 48 ms each over 49 rows, and the head, whose time grows 25-fold as the blocks' does
    assert two - one == pytest.approx((0.004 + 4 * 0.048 + 0.007 * 24) / 49)


def test_each_token_of_context_costs_each_row_the_reading_of_its_keys_and_values(problem):
    forecast = Forecast(problem, ("s", "w"), (1, 3))
    more_s = forecast.decode_step_s(1, MEASURED_CONTEXT + 1000) - forecast.decode_step_s(1)
    assert more_s == pytest.approx(1000 * (1 * 1e-6 + 3 * 2e-6))
    two_s = forecast.decode_step_s(2, MEASURED_CONTEXT + 1000) - forecast.decode_step_s(2)
    assert two_s == pytest.approx(2 * more_s)
    assert forecast.decode_step_s(1, 0) == forecast.decode_step_s(1)  # never less than was measured


def test_blocks_with_a_window_see_no_more_than_it():
    model = ModelCost(4, 10, 3, ctx=5, slots=2, stage_bytes=1, chunk_tokens=50, window_tokens=512, windowed_share=0.75)
    assert model.seen_tokens(400) == 400
    assert model.seen_tokens(4096) == 0.25 * 4096 + 0.75 * 512


def test_a_prompt_is_cut_into_chunks():
    model = ModelCost(4, 10, 3, ctx=5, slots=2, stage_bytes=1, chunk_tokens=50)
    assert [model.chunk_sizes(n) for n in (1, 50, 120)] == [[1], [50], [50, 50, 20]]


def walked_s(forecast: Forecast, prompt_tokens: int) -> float:
    """The same ring as a machine that moves in time: each place works on one chunk, queues are in order, a window of chunks is out."""
    sizes = forecast.problem.model.chunk_sizes(prompt_tokens)
    work, context = [], 0
    for rows in sizes:
        stages_s, hops_s = forecast.prefill_parts_s(rows, context)
        work.append([part for pair in zip(stages_s, hops_s, strict=True) for part in pair] if hops_s else stages_s)
        context += rows
    places = len(work[0])
    queues: list[list[int]] = [[] for _ in range(places)]
    busy: list[tuple[float, int] | None] = [None] * places
    now, sent, back = 0.0, 0, 0
    while back < len(sizes):
        while sent < len(sizes) and sent - back < forecast.max_in_flight:
            queues[0].append(sent)
            sent += 1
        for place in range(places):
            if busy[place] is None and queues[place]:
                chunk = queues[place].pop(0)
                busy[place] = (now + work[chunk][place], chunk)
        now, place = min((job[0], place) for place, job in enumerate(busy) if job is not None)
        chunk = busy[place][1]
        busy[place] = None
        if place + 1 < places:
            queues[place + 1].append(chunk)
        else:
            back += 1
    return now + forecast.problem.starter.prefill_s


def test_the_first_token_is_that_of_a_machine_that_moves_in_time(random_problem):
    for seed in range(40_000, 40_300):
        draw = random.Random(seed)
        problem = random_problem(seed, n_blocks=(5,))
        nodes = tuple(replace(node, prefill_kv_s=draw.uniform(0, 1e-5)) for node in problem.nodes)
        problem = replace(
            problem, nodes=nodes, links={pair: LinkCost(0.001, draw.uniform(0.001, 0.02)) for pair in problem.links}
        )
        n_stages = draw.randint(1, min(3, len(nodes)))
        counts = (5 - (n_stages - 1), *[1] * (n_stages - 1))
        forecast = Forecast(problem, tuple(node.node_id for node in nodes[:n_stages]), counts)
        prompt = draw.randint(1, 400)
        assert forecast.ttft_s(prompt) == pytest.approx(walked_s(forecast, prompt), rel=1e-12)


def test_a_prompt_has_no_more_chunks_on_its_way_than_the_starter_sends():
    """Three stages and three hops of 10 ms each could hold six chunks at once; the starter waits for a result after four."""
    nodes = [NodeCost(f"n{i}", f"n{i}", 1000, StageTime(0, 0.01), StageTime(0, 0.01)) for i in range(3)]
    links = {(a.node_id, b.node_id): LinkCost(0.01, 0.01) for a in nodes for b in nodes if a is not b}
    model = ModelCost(3, 10, 0, ctx=5, slots=1, stage_bytes=1, chunk_tokens=4)
    forecast = Forecast(Problem(model, tuple(nodes), StarterCost(0, 0, 0), links), ("n0", "n1", "n2"), (1, 1, 1))
    # One place after another is 60 ms; four chunks start 10 ms apart, and the fifth when the first is back.
    assert forecast.ttft_s(4 * 4) == pytest.approx(0.09)
    assert forecast.ttft_s(5 * 4) == pytest.approx(0.12)
    assert forecast.ttft_s(9 * 4) == pytest.approx(0.18)
    assert forecast.ttft_s(9 * 4) == pytest.approx(walked_s(forecast, 9 * 4))


def test_conversations_fill_the_ring_and_then_share_steps(problem):
    forecast = Forecast(problem, ("s", "w"), (1, 3))
    assert forecast.max_in_flight == 3
    step_s, slowest_s = 0.010 + 0.005 + 0.015 + 0.006, 0.015
    assert forecast.tokens_per_s(1) == pytest.approx(1 / step_s)
    assert forecast.tokens_per_s(2) == pytest.approx(2 / step_s)
    # Three steps of one row keep the pi busy for 45 ms; one of all three would be back after 61.
    assert forecast.rows_per_step(3) == 1
    assert forecast.tokens_per_s(3) == pytest.approx(3 / (3 * slowest_s))
    # With six, two steps of three rows are sooner done than three of two, which keep the pi busy for 63 ms.
    starter_s, pi_s, frames_s = (0.004 + 0.048 + 0.007 * 24) / 49, (0.004 + 3 * 0.096) / 49, (0.045 + 0.054) / 49
    assert forecast.rows_per_step(6) == 3
    assert forecast.tokens_per_s(6) == pytest.approx(6 / (step_s + 2 * (starter_s + pi_s + frames_s)))
    alone = Forecast(problem, ("s",), (4,))
    assert alone.tokens_per_s(2) == pytest.approx(2 / alone.decode_step_s(2))


def test_bytes_are_weights_kv_of_all_slots_and_the_head_on_the_starter(problem):
    assert Forecast(problem, ("s", "w"), (1, 3)).node_bytes() == {"s": 20 + 1 + (10 + 30), "w": 1 + 3 * (10 + 30)}


@pytest.mark.parametrize("objective", Objective)
def test_plans_are_made_for_the_load(problem, objective):
    """With many rows the laptop's blocks are twice as fast as the pi's; with many tokens of context too; the solver must see both."""
    for load in (Load(1), Load(16), Load(4, 100_000)):
        loaded = replace(problem, load=load)
        plan = solve(loaded, objective)
        times = predict(loaded, plan.node_ids, plan.counts)
        assert plan.prediction == times
        assert plan.gap == 0
        assert times.throughput_tokens_per_s == pytest.approx(load.rows / times.bottleneck_s)
        every = [predict(loaded, ["s"], [4])] + [predict(loaded, ["s", "w"], [n, 4 - n]) for n in (1, 2, 3)]
        share = objective.busy_share(0.5)
        best = min((1 - share) * each.decode_step_s + share * each.bottleneck_s for each in every)
        assert plan.value_s == pytest.approx(best, rel=1e-12)


def test_nothing_is_no_prompt_and_nobody_is_no_conversation(problem):
    forecast = Forecast(problem, ("s",), (4,))
    for impossible in (lambda: forecast.ttft_s(0), lambda: forecast.tokens_per_s(0), lambda: Load(0), lambda: Load(1, -1)):
        with pytest.raises(UserError):
            impossible()
