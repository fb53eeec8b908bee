"""Problems to solve: hand-made ones, and small random ones that reach every corner of the planner."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from mdi.plan.costs import UNREACHABLE, LinkCost, ModelCost, NodeCost, Problem, StageTime, StarterCost

GIB = 1 << 30


def _home(*devices: tuple[str, float, float], hop_s: float = 0.6e-3, starter_s: float = 6e-3, n_blocks: int = 32) -> Problem:
    """Devices as (name, GiB, ms for a block), the starter first, all links alike; a block takes 128 MiB."""
    nodes = [
        NodeCost(f"id-{name}", name, int(gib * GIB), StageTime(0.4e-3, block_ms / 1000), StageTime(1e-3, 8 * block_ms / 1000))
        for name, gib, block_ms in devices
    ]
    links = {(a.node_id, b.node_id): LinkCost(hop_s, 10 * hop_s) for a in nodes for b in nodes if a is not b}
    model = ModelCost(n_blocks, 120 << 20, 4096, ctx=2048, slots=1, stage_bytes=64 << 20, chunk_tokens=64)
    return Problem(model, tuple(nodes), StarterCost(starter_s, starter_s, 256 << 20), links)


def _random_problem(seed: int, n_nodes: Sequence[int] = (1, 2, 3, 4), n_blocks: Sequence[int] = (1, 2, 3, 4, 5)) -> Problem:
    """Half of them in whole milliseconds, so that equal plans are common; some links are unreachable, some nodes too small."""
    draw = random.Random(seed)
    coarse, broken = draw.random() < 0.5, draw.random() < 0.1
    blocks, size = draw.choice(n_blocks), draw.choice(n_nodes)

    def seconds(least: float, most: float) -> float:
        return draw.randint(round(least), round(most)) / 1000 if coarse else draw.uniform(least, most) / 1000

    def stage() -> StageTime:
        return StageTime(seconds(0, 4), max(seconds(1, 9), 1e-4))

    def link() -> LinkCost:
        return UNREACHABLE if broken and draw.random() < 0.4 else LinkCost(seconds(0, draw.choice((1, 12))), seconds(0, 9))

    roomy = draw.random() < 0.3
    nodes = []
    for index in range(size):
        held = blocks if roomy else draw.randint(0, blocks)
        nodes.append(NodeCost(f"n{index}", f"node {index}", 7 + 5 + 10 * held + draw.randint(0, 9), stage(), stage()))
    pairs = [(a.node_id, b.node_id) for a in nodes for b in nodes if a is not b]
    model = ModelCost(blocks, 6, 2, ctx=2, slots=1, stage_bytes=5, chunk_tokens=32, prompt_tokens=draw.choice((1, 100)))
    return Problem(model, tuple(nodes), StarterCost(seconds(0, 5), seconds(0, 5), 7), {pair: link() for pair in pairs})


@pytest.fixture(scope="session")
def home() -> Callable[..., Problem]:
    return _home


@pytest.fixture(scope="session")
def random_problem() -> Callable[..., Problem]:
    return _random_problem
