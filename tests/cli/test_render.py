from __future__ import annotations

from dataclasses import replace

import pytest

from mdi.cli.render import answer_line, block_names, duration, nodes_text
from mdi.pipeline.api import Answer, FinishReason, Timings
from mdi.pipeline.survey import NodeList, NodeRow, StageRow
from mdi.plan.plan import BlockRange, Plan, Prediction, Stage

PLAN = Plan(
    objective=None,
    n_blocks=4,
    stages=(Stage("a" * 32, "desk", BlockRange(0, 0), 10), Stage("b" * 32, "attic", BlockRange(0, 4), 1 << 20)),
    prediction=Prediction(0.1, 0.2, "the stage on attic", 0.08, (0.01, 0.08), (0.005, 0.005), (0.1, 0.1), (0.0, 0.0)),
)
GIB = 1 << 30


def answer(reason: FinishReason, decode_tokens_per_s: float | None) -> Answer:
    return Answer("x", (1,), (2, 3), reason, Timings(0.5, 1.0, 2, 1, 1, decode_tokens_per_s))


def test_a_line_names_the_nodes_that_hold_blocks_and_an_end_that_was_not_the_models() -> None:
    assert answer_line(answer(FinishReason.STOP, None), PLAN) == "1 token · first token after 500 ms · attic"
    assert answer_line(answer(FinishReason.LENGTH, 12.34), PLAN) == (
        "1 token · 12.3 tok/s · first token after 500 ms · length limit reached · attic"
    )
    assert "stopped" in answer_line(answer(FinishReason.CANCELLED, None), PLAN)


def test_nodes_that_answer_are_a_table_and_others_a_sentence() -> None:
    attic = NodeRow(
        "b" * 32, "attic", "10.0.0.2:52700", "mdns", threads=4, memory_total_bytes=4 * GIB, memory_offered_bytes=3 * GIB,
        memory_used_bytes=GIB, uptime_s=7200.0, stages=(StageRow("demo", 0, 4, 1 << 20, "a" * 32),),
    )  # fmt: skip
    kitchen = NodeRow("c" * 32, "kitchen", "10.0.0.3:52700", "static", problem="it fell silent")
    text = nodes_text(NodeList((attic, kitchen), strangers=2))
    head, row, silent, strangers = text.splitlines()
    assert head.split()[0] == "node"
    assert [cell in row for cell in ("attic", "10.0.0.2:52700", "3.0 GiB of 4.0 GiB", "2 h", "demo 0–3")] == [True] * 5
    assert silent == "kitchen (10.0.0.3:52700) cannot be used: it fell silent"
    assert strangers.startswith("2 nodes of another cluster")


def test_a_stage_tells_its_speed_once_it_has_one() -> None:
    stages = (StageRow("demo", 0, 4, 1, "a" * 32, 0.412), StageRow("tiny", 3, 4, 1, "a" * 32))
    row = NodeRow("b" * 32, "desk", "10.0.0.2:52700", "mdns", stages=stages)
    nodes = NodeList((row,), strangers=0)
    assert "demo 0–3 at 0.41x, tiny 3" in nodes_text(nodes)
    assert [stage["speed"] for stage in nodes.to_json()["nodes"][0]["stages"]] == [0.412, None]


def test_a_node_with_a_gpu_is_told_by_its_name() -> None:
    row = NodeRow("b" * 32, "desk", "10.0.0.2:52700", "mdns", threads=8, device="cuda:0", accelerator="NVIDIA RTX 4090")
    assert "NVIDIA RTX 4090" in nodes_text(NodeList((row,), strangers=0))
    assert "8 threads" in nodes_text(NodeList((replace(row, accelerator=None),), strangers=0))


def test_no_nodes_is_a_sentence_that_says_what_to_do() -> None:
    assert "mdi node start" in nodes_text(NodeList((), strangers=0))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (86400 * 12, "12 days")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_blocks_are_named_by_their_first_and_last() -> None:
    assert [block_names(*pair) for pair in ((0, 0), (3, 4), (0, 4))] == ["none", "3", "0–3"]
