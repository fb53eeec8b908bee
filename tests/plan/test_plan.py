from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mdi.errors import InternalError
from mdi.plan.plan import BlockRange, Objective
from mdi.plan.solve import solve


@pytest.fixture
def plan(home):
    return solve(home(("laptop", 3, 3), ("pi", 4, 15)), Objective.LATENCY)


def test_a_range_is_half_open():
    assert len(BlockRange(3, 7)) == 4
    assert len(BlockRange(3, 3)) == 0
    for start, stop in ((-1, 2), (3, 2)):
        with pytest.raises(InternalError):
            BlockRange(start, stop)


def test_a_plan_covers_every_block_once(plan):
    first, second = plan.stages
    shifted = replace(second, blocks=BlockRange(second.blocks.start + 1, second.blocks.stop))
    short = replace(second, blocks=BlockRange(second.blocks.start, second.blocks.stop - 1))
    same_node = replace(second, node_id=first.node_id)
    for stages in ((), (first,), (first, shifted), (first, short), (second, first), (first, same_node)):
        with pytest.raises(InternalError):
            replace(plan, stages=stages)


def test_a_worker_without_blocks_is_not_in_the_ring(plan):
    first, second = plan.stages
    everything = replace(first, blocks=BlockRange(0, 32))
    with pytest.raises(InternalError, match="pi is in the ring without a block"):
        replace(plan, stages=(everything, replace(second, blocks=BlockRange(32, 32))))


@pytest.mark.parametrize("field", ["stage_decode_s", "stage_prefill_s", "hop_decode_s", "hop_prefill_s"])
def test_a_prediction_belongs_to_its_stages(plan, field):
    with pytest.raises(InternalError, match="prediction"):
        replace(plan, prediction=replace(plan.prediction, **{field: (0.1,)}))


def test_json_says_the_same(plan):
    told = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert told["objective"] == "latency"
    assert told["n_blocks"] == 32
    assert [(stage["node"], stage["name"], stage["start"], stage["stop"], stage["bytes"]) for stage in told["stages"]] == [
        (stage.node_id, stage.name, stage.blocks.start, stage.blocks.stop, stage.bytes) for stage in plan.stages
    ]
    assert told["prediction"]["decode_step_s"] == plan.prediction.decode_step_s
    assert told["prediction"]["stage_decode_s"] == list(plan.prediction.stage_decode_s)
    assert told["prediction"]["throughput_tokens_per_s"] == plan.prediction.throughput_tokens_per_s
