from __future__ import annotations

from dataclasses import replace

import pytest

from mdi.errors import InternalError, UserError
from mdi.plan.costs import UNREACHABLE, LinkCost, ModelCost, NodeCost, Problem, StageTime, StarterCost

MODEL = ModelCost(8, 100, 2, ctx=10, slots=3, stage_bytes=50, chunk_tokens=64)
NODE = NodeCost("a", "pi", 1000, StageTime(0.001, 0.002), StageTime(0.001, 0.002))


def test_no_blocks_cost_nothing():
    assert StageTime(1.0, 2.0).seconds(0) == 0
    assert StageTime(1.0, 2.0).seconds(3) == 7
    assert MODEL.memory_bytes(0) == 0


def test_a_block_takes_its_weights_and_the_cache_of_every_slot():
    assert MODEL.resident_block_bytes == 100 + 2 * 10 * 3
    assert replace(MODEL, resident_factor=1.5).resident_block_bytes == 150 + 60
    assert MODEL.memory_bytes(2) == 50 + 2 * 160


@pytest.mark.parametrize(("offered", "limit"), [(0, 0), (209, 0), (210, 1), (369, 1), (370, 2), (10_000, 8)])
def test_the_limit_is_the_most_that_fits(offered, limit):
    assert MODEL.block_limit(offered) == limit
    assert limit == 8 or MODEL.memory_bytes(limit + 1) > offered


def test_the_starter_gives_memory_to_embedding_and_head_first():
    links = {("a", "b"): UNREACHABLE, ("b", "a"): UNREACHABLE}
    problem = Problem(MODEL, (NODE, replace(NODE, node_id="b")), StarterCost(0, 0, 400), links)
    assert [problem.block_limit(0), problem.block_limit(1)] == [3, 5]
    assert problem.bytes_needed(0, 0) == 400
    assert problem.bytes_needed(0, 3) == 400 + 50 + 480
    assert problem.bytes_needed(1, 0) == 0


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_times_are_finite_and_not_negative(value):
    for broken in (
        lambda: StageTime(value, 1.0),
        lambda: StageTime(0.0, value),
        lambda: StarterCost(value, 0.0, 0),
        lambda: StarterCost(0.0, value, 0),
        lambda: LinkCost(value, 0.0),
        lambda: LinkCost(0.0, value),
    ):
        with pytest.raises(UserError, match="seconds, not") as caught:
            broken()
        assert caught.value.hint


def test_a_block_takes_some_time():
    with pytest.raises(UserError, match="block_s must be more than 0 seconds, not 0"):
        StageTime(0.0, 0.0)


@pytest.mark.parametrize(
    "field", ["n_blocks", "block_bytes", "ctx", "slots", "chunk_tokens", "prompt_tokens", "resident_factor", "stage_bytes"]
)
def test_impossible_models_are_refused_by_field(field):
    with pytest.raises(UserError, match=field):
        replace(MODEL, **{field: -1})


def test_impossible_nodes_and_starters_are_refused():
    with pytest.raises(UserError, match="memory_bytes"):
        replace(NODE, memory_bytes=-1)
    with pytest.raises(UserError, match="bytes"):
        StarterCost(0.0, 0.0, -1)
    with pytest.raises(InternalError, match="name"):
        replace(NODE, name="")


def test_a_problem_has_a_starter_different_ids_and_all_links():
    starter, other = StarterCost(0.0, 0.0, 0), replace(NODE, node_id="b")
    with pytest.raises(InternalError, match="starter"):
        Problem(MODEL, (), starter, {})
    with pytest.raises(InternalError, match="same id"):
        Problem(MODEL, (NODE, NODE), starter, {})
    with pytest.raises(InternalError, match="from b to a"):
        Problem(MODEL, (NODE, other), starter, {("a", "b"): LinkCost(0.0, 0.0)})


def test_a_device_that_keeps_kv_in_another_type_holds_another_number_of_blocks() -> None:
    stage = StageTime(0.0, 1.0)
    nodes = [NodeCost(name, name, 850, stage, stage, kv_bytes_per_token=kv) for name, kv in (("a", None), ("b", 0), ("c", 10))]
    links = {(a.node_id, b.node_id): LinkCost(1, 1) for a in nodes for b in nodes if a is not b}
    problem = Problem(MODEL, tuple(nodes), StarterCost(0.0, 0.0, 0), links)
    assert [problem.block_limit(i) for i in range(3)] == [5, 8, 2]  # 100 bytes and 30 tokens of 2, 0 and 10 bytes
    assert [problem.bytes_needed(i, 2) for i in range(3)] == [370, 250, 850]
