"""From step times of real traffic to the problem that they show."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import PeerError
from mdi.plan.costs import UNREACHABLE, LinkTable, Problem
from mdi.plan.live import (
    COMMON_FACTOR,
    DECODE_ROWS,
    MIN_STEPS,
    MOST_FACTOR,
    NO_FACTORS,
    Factor,
    Factors,
    StepTimes,
    factor_of,
    head_factor,
    hop_factor,
    mean_step_s,
    scaled,
)
from mdi.plan.predict import predict


@pytest.fixture
def problem(home) -> Problem:
    plain = home(("desk", 8, 2.0), ("attic", 8, 4.0), ("shed", 8, 8.0))
    return replace(plain, nodes=tuple(replace(node, decode_kv_s=1e-6, prefill_kv_s=1e-7) for node in plain.nodes))


def steps(problem: Problem, index: int, n_blocks: int, times_as_long: float, *shapes: tuple[int, int]) -> list[StepTimes]:
    """Steps of (rows, context), each of them that often as it is there, that take so many times as long as predicted."""
    found = []
    for rows, context in shapes:
        predict_time = problem.decode_time if rows <= DECODE_ROWS else problem.prefill_time
        found.append(StepTimes(rows, 1, context, times_as_long * predict_time(index, rows, context).seconds(n_blocks)))
    return found


def test_the_factor_is_the_same_whatever_rows_and_context_the_steps_had(problem):
    decode = steps(problem, 1, 10, 2.5, (1, 0), (1, 128), (1, 1900), (4, 500), (DECODE_ROWS, 60))
    prefill = steps(problem, 1, 10, 3.5, (64, 0), (64, 640), (32, 64))
    assert factor_of(problem, 1, 10, decode + prefill) == Factor(pytest.approx(2.5), pytest.approx(3.5))


def test_steps_that_are_told_together_count_as_each_by_itself(problem):
    apart = steps(problem, 1, 10, 1.0, (1, 500)) + steps(problem, 1, 10, 4.0, (1, 700), (1, 1300), (3, 128))
    together = [apart[0].and_more(apart[1]).and_more(apart[2]), apart[3]]
    assert (together[0].steps, together[0].context_tokens) == (3, pytest.approx(2500 / 3))
    assert together[0].seconds == pytest.approx(sum(each.seconds for each in apart[:3]))
    assert factor_of(problem, 1, 10, together).decode == pytest.approx(factor_of(problem, 1, 10, apart).decode)
    last = together[0].without(apart[0].and_more(apart[1]))
    assert last is not None
    assert (last.steps, last.context_tokens, last.seconds) == (1, pytest.approx(1300), pytest.approx(apart[2].seconds))
    assert together[0].without(together[0]) is None


def test_a_device_that_pauses_between_fast_steps_is_slow(problem):
    """As under a quota of a fifth: nine of ten steps are as fast as ever."""
    fast, paused = steps(problem, 1, 10, 1.0, *[(1, 128)] * 9), steps(problem, 1, 10, 41.0, (1, 128))
    assert factor_of(problem, 1, 10, fast + paused).decode == pytest.approx(5.0)


def test_chunks_that_are_neither_tell_nothing(problem):
    assert factor_of(problem, 1, 10, steps(problem, 1, 10, 9.0, *[(DECODE_ROWS + 1, 0), (31, 0)] * 5)) == Factor()


def test_few_steps_tell_nothing(problem):
    few = steps(problem, 1, 10, 1.0, *[(1, 128)] * (MIN_STEPS - 1))
    assert factor_of(problem, 1, 10, few) == Factor()
    assert factor_of(problem, 1, 10, few + few[:1]) == Factor(pytest.approx(1.0))
    assert mean_step_s(few) is None
    assert mean_step_s(few + few[:1]) == pytest.approx(few[0].seconds)


def test_the_head_tells_how_slow_the_starter_is(problem):
    slow = [StepTimes(rows, 2, 0, 2 * 3.0 * problem.head_s(rows)) for rows in (1, 4)]
    assert head_factor(problem, slow) == pytest.approx(3.0)
    assert head_factor(problem, slow[:1]) is None


@pytest.mark.parametrize(
    ("rows", "steps", "context", "seconds"),
    [
        (0, 1, 0, 1.0),
        (1 << 30, 1, 0, 1.0),
        (1, 0, 0, 1.0),
        (1, 1, -1, 1.0),
        (1, 1, math.nan, 1.0),
        (1, 1, 0, 0.0),
        (1, 1, 0, math.nan),
        (1, 1, 0, math.inf),
    ],
)
def test_steps_that_cannot_be_are_the_peers_fault(rows, steps, context, seconds):
    with pytest.raises(PeerError):
        StepTimes(rows, steps, context, seconds)


def test_hops_that_drown_in_noise_stay_numbers():
    assert hop_factor(0.02, 0.01) == pytest.approx(2.0)
    assert 0 < hop_factor(-0.5, 0.01) < 1
    assert hop_factor(1e9, 1e-9) == MOST_FACTOR
    assert hop_factor(0.1, 0.0) == 1.0


def test_without_traffic_the_problem_is_what_was_measured(problem):
    assert scaled(problem, NO_FACTORS) == problem


def test_a_slow_node_is_slow_in_all_that_it_does_and_the_head_is_on_the_starter(problem):
    factors = Factors({"id-desk": Factor(2.0), "id-attic": Factor(1.0, 5.0)})
    found = scaled(problem, factors)
    ring = (["id-desk", "id-attic"], [8, 24])
    before, after = predict(problem, *ring), predict(found, *ring)
    assert after.stage_decode_s == pytest.approx((2 * before.stage_decode_s[0], before.stage_decode_s[1]))
    assert after.stage_prefill_s == pytest.approx((2 * before.stage_prefill_s[0], 5 * before.stage_prefill_s[1]))
    assert found.nodes[0].decode_kv_s == 2 * problem.nodes[0].decode_kv_s
    assert after.hop_decode_s == before.hop_decode_s
    assert [found.block_limit(index) for index in range(3)] == [problem.block_limit(index) for index in range(3)]


@pytest.mark.parametrize(("seen", "expected"), [((1.2, 1.1), 1.1), ((3.0, 2.0), COMMON_FACTOR), ((0.5, 4.0), 1.0), ((), 1.0)])
def test_what_is_not_in_use_is_as_far_from_its_measurement_as_the_best_that_is(problem, seen, expected):
    factors = Factors({node.node_id: Factor(factor) for node, factor in zip(problem.nodes, seen, strict=False)})
    assert scaled(problem, factors).nodes[2].decode.block_s == pytest.approx(expected * problem.nodes[2].decode.block_s)


@given(st.floats(0.1, 50.0), st.floats(0.1, 50.0))
def test_links_as_a_table_are_scaled_as_links_one_by_one(home, there, back):
    plain = home(("desk", 8, 2.0), ("attic", 8, 4.0), ("shed", 8, 8.0))
    ids = tuple(node.node_id for node in plain.nodes)
    links = {**plain.links, (ids[1], ids[2]): UNREACHABLE}
    decode_s, prefill_s = np.zeros((3, 3)), np.zeros((3, 3))
    for (sender, receiver), link in links.items():
        decode_s[ids.index(sender), ids.index(receiver)] = link.decode_s
        prefill_s[ids.index(sender), ids.index(receiver)] = link.prefill_s
    factors = Factors(hops={(ids[0], ids[1]): there, (ids[1], ids[0]): back, ("gone", ids[0]): 9.0})
    one = scaled(replace(plain, links=links), factors)
    table = scaled(replace(plain, links=LinkTable(ids, decode_s, prefill_s)), factors)
    assert {pair: (link.decode_s, link.prefill_s) for pair, link in one.links.items()} == {
        pair: (pytest.approx(link.decode_s), pytest.approx(link.prefill_s)) for pair, link in table.links.items()
    }
    assert one.links[ids[1], ids[2]] == UNREACHABLE
    assert one.links[ids[0], ids[1]].decode_s == plain.links[ids[0], ids[1]].decode_s * there
