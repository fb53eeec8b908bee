"""Workers that answer wrongly: one flipped byte is forgiven, a stage that computes nonsense is left out, and no text is ever wrong."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.conftest import GREEDY, SAMPLED, Nodes, ask, names

DEADLINE_S = 60.0
pytestmark = pytest.mark.timeout(180)

# What the worker's process runs first: it damages what its stage computes from the 9th step on, once or for good.
FLIPPED_ONCE = """
import mdi.node.stage as stage
compute, steps = stage.LoadedStage.compute, 0
def computed(self, data):
    global steps
    steps += 1
    result = compute(self, data)
    return result[:-1] + bytes([result[-1] ^ 64]) if steps == 9 else result
stage.LoadedStage.compute = computed
"""
NONSENSE = """
import numpy as np
import mdi.node.stage as stage
encode, frames = stage.encode, 0
def encoded(frame):
    global frames
    frames += 1
    hidden = np.full_like(frame.hidden, np.nan) if frames > 8 else frame.hidden
    return encode(stage.Frame(frame.epoch, frame.step, frame.rows, (), hidden))
stage.encode = encoded
"""


async def answers(nodes: Nodes, *workers: str, said: list[str] | None = None) -> tuple[list[tuple[int, ...]], set[str], int]:
    """A greedy and a sampled answer, who works at the end, and how many failures there were."""
    async with nodes.starter(*workers, said=said) as starter, asyncio.timeout(DEADLINE_S):
        found = [await ask(starter, GREEDY), await ask(starter, SAMPLED)]
        return found, names(starter), len(starter.recoveries)


async def test_a_flipped_byte_is_refused_and_the_same_nodes_get_a_second_chance(nodes: Nodes) -> None:
    nodes.get("flips", before=FLIPPED_ONCE)
    said: list[str] = []
    alone, _, _ = await answers(nodes)
    assert await answers(nodes, "one", "flips", said=said) == (alone, {"one", "flips"}, 1)
    (line,) = said
    assert line.startswith("the ring broke (")
    assert "crc32c" in line


async def test_a_stage_that_computes_nonsense_is_left_out_and_its_text_is_never_seen(nodes: Nodes) -> None:
    nodes.get("lies", before=NONSENSE)
    said: list[str] = []
    alone, _, _ = await answers(nodes)
    found, workers, failures = await answers(nodes, "one", "lies", said=said)
    assert found == alone
    assert "lies" not in workers
    assert failures >= 2
    assert "finite numbers" in said[0]
