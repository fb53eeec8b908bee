"""The arithmetic, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mdi.errors import InternalError, LinkError
from mdi.plan.costs import UNREACHABLE, LinkCost, ModelCost, NodeCost, Problem, StageTime, StarterCost
from mdi.plan.predict import predict


@pytest.fixture
def problem() -> Problem:
    nodes = (
        NodeCost("s", "laptop", 1000, StageTime(0.001, 0.002), StageTime(0.010, 0.020)),
        NodeCost("w", "pi", 1000, StageTime(0.003, 0.004), StageTime(0.030, 0.040)),
    )
    links = {("s", "w"): LinkCost(0.005, 0.050), ("w", "s"): LinkCost(0.006, 0.060)}
    model = ModelCost(4, 10, 0, ctx=1, slots=1, stage_bytes=0, chunk_tokens=50, prompt_tokens=150)
    return Problem(model, nodes, StarterCost(0.007, 0.070, 0), links)


def test_a_step_is_the_sum_of_stages_and_hops(problem):
    times = predict(problem, ["s", "w"], [1, 3])
    assert times.stage_decode_s == pytest.approx((0.007 + 0.003, 0.015))
    assert times.hop_decode_s == (0.005, 0.006)
    assert times.decode_step_s == pytest.approx(0.036)
    assert times.decode_tokens_per_s == pytest.approx(1 / 0.036)


def test_a_full_ring_is_as_fast_as_its_slowest_stage(problem):
    times = predict(problem, ["s", "w"], [1, 3])
    assert times.bottleneck == "the stage on pi (15.0 ms)"
    assert times.throughput_tokens_per_s == pytest.approx(1 / 0.015)
    assert times.conversations_to_fill == 3  # 36 ms round, one started every 15 ms


def test_three_equal_parts_are_filled_by_three_conversations(problem):
    # 0.1 + 0.1 + 0.1 is a little more than 0.3 in floating point.
    times = replace(predict(problem, ["s"], [4]), decode_step_s=0.1 + 0.1 + 0.1, bottleneck_s=0.1)
    assert times.conversations_to_fill == 3


def test_a_slow_hop_can_be_the_bottleneck(problem):
    slow = replace(problem, links={**problem.links, ("w", "s"): LinkCost(0.120, 0.120)})
    assert predict(slow, ["s", "w"], [1, 3]).bottleneck == "the hop pi → laptop (120 ms)"


def test_the_first_token_waits_for_every_chunk_at_the_slowest_place(problem):
    # Three chunks; one pass: starter 10 + 20, hop 50, stage 30 + 3 * 40, and one row back: 6; the slowest is 150; then the head: 70.
    times = predict(problem, ["s", "w"], [1, 3])
    assert times.ttft_s == pytest.approx(0.030 + 0.050 + 0.150 + 0.006 + 2 * 0.150 + 0.070)


def test_a_starter_alone_has_no_hops(problem):
    times = predict(problem, ["s"], [4])
    assert times.hop_decode_s == ()
    assert times.decode_step_s == pytest.approx(0.007 + 0.001 + 4 * 0.002)
    assert times.conversations_to_fill == 1
    assert times.ttft_s == pytest.approx(3 * (0.010 + 4 * 0.020) + 0.070)


def test_a_starter_without_blocks_pays_head_and_both_hops_but_no_overhead(problem):
    times = predict(problem, ["s", "w"], [0, 4])
    assert times.stage_decode_s[0] == 0.007
    assert times.decode_step_s == pytest.approx(0.007 + 0.019 + 0.011)


@pytest.mark.parametrize(
    ("order", "counts"),
    [
        (["w", "s"], [1, 3]),
        (["s"], [3]),
        (["s", "w"], [4, 0]),
        (["s", "w"], [4]),
        (["s", "s"], [2, 2]),
        ([], []),
        (["s"], [-4]),
    ],
)
def test_what_is_no_ring_of_all_blocks_is_our_bug(problem, order, counts):
    with pytest.raises(InternalError):
        predict(problem, order, counts)


def test_an_unknown_node_is_our_bug(problem):
    with pytest.raises(InternalError, match="no node x"):
        predict(problem, ["s", "x"], [1, 3])


def test_an_unreachable_hop_is_named(problem):
    apart = replace(problem, links={**problem.links, ("s", "w"): UNREACHABLE})
    with pytest.raises(LinkError, match="laptop cannot reach pi"):
        predict(apart, ["s", "w"], [1, 3])
