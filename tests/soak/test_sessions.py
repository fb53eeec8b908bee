"""Many sessions over two daemons that stay: every answer is the reference's, and nothing is left behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mdi.pipeline.api import Answer, FinishReason, Piece, Request
from mdi.pipeline.starter import Starter, open_starter
from mdi.pipeline.survey import list_nodes
from tests.cluster.conftest import N_BLOCKS, Daemon, House, house, model  # noqa: F401 (fixtures)
from tests.cluster.test_run import ask, options

pytestmark = pytest.mark.soak

N_SESSIONS = 100
WARM_UP_SESSIONS = 20  # allocators and caches have reached their size after these
GROWTH_BYTES = 8 << 20  # of a daemon in all sessions after the warm-up: below 100 KiB a session, a tenth of one stage
PROMPTS = [tuple(range(n, n + 20)) for n in (10, 40, 80, 120)]
SEED = 0


def splits(rng: random.Random) -> Iterator[tuple[int, int, int]]:
    """Blocks of the starter and of two nodes, at random; a node may have none."""
    while True:
        first, second = sorted(rng.randint(0, N_BLOCKS) for _ in range(2))
        yield first, second - first, N_BLOCKS - second


async def cancelled_after(starter: Starter, n_pieces: int) -> Answer:
    """An answer that its reader does not want to the end."""
    answer, pieces = None, 0
    async for event in starter.generate(Request(PROMPTS[0], max_tokens=80, ignore_eos=True)):
        match event:
            case Piece():
                pieces += 1
                if pieces == n_pieces:
                    starter.cancel()
            case Answer():
                answer = event
    assert answer is not None
    return answer


def footprint(daemon: Daemon) -> tuple[int, int, int]:
    """(resident bytes, open files, threads)"""
    process = psutil.Process(daemon.node.pid)
    return process.memory_info().rss, process.num_fds(), process.num_threads()


@pytest.mark.timeout(1800)
async def test_a_hundred_sessions_leave_nothing_behind(house: House, model: Path) -> None:  # noqa: F811
    one, two = house.start("one"), house.start("two")
    rng = random.Random(SEED)
    home = house.home("starter")
    async with open_starter(options(model), home, lambda _: None) as starter:
        expected = {prompt: (await ask(starter, prompt)).token_ids for prompt in PROMPTS}
    before: list[tuple[int, int, int]] = []
    for number, split in zip(range(N_SESSIONS), splits(rng), strict=False):
        if number == WARM_UP_SESSIONS:
            before = [footprint(one), footprint(two)]
        async with open_starter(options(model, one, two, split=split), home, lambda _: None) as starter:
            for prompt in rng.sample(PROMPTS, 2):
                assert (await ask(starter, prompt)).token_ids == expected[prompt], (number, split)
            if rng.random() < 0.3:
                assert (await cancelled_after(starter, rng.randint(1, 9))).finish_reason is FinishReason.CANCELLED
    held = await list_nodes(home, (one.address, two.address), discovery=False, wait_s=0.1)
    assert [(row.stages, row.memory_used_bytes) for row in held.rows] == [((), 0), ((), 0)]
    for daemon, (rss, fds, threads) in zip((one, two), before, strict=True):
        rss_now, fds_now, threads_now = footprint(daemon)
        assert rss_now - rss < GROWTH_BYTES, f"{daemon.node.name} grew by {(rss_now - rss) >> 20} MiB"
        assert fds_now <= fds
        assert threads_now <= threads + 1
