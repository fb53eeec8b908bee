"""The loop and the engine thread hand sequences to each other: none is lost and none stays behind, whatever comes first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from mdi.engine.sampling import SamplingParams
from mdi.errors import PromptTooLong
from mdi.pipeline.core import NewToken, StarterCore
from mdi.pipeline.drive import Drive, Inbox, new_inbox
from mdi.pipeline.scheduler import Scheduler
from tests.pipeline.toy import ToyEmbedding, ToyEngine, ToyHead, reference

CTX = 64
GREEDY = SamplingParams()


class HeldEngine:
    """Keeps an engine thread's promises (one job after another, in order, even when the caller has gone), at the test's word."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    async def run(self, function: Callable[..., Any], *arguments: object) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.jobs.append((future, function, arguments))
        return await future

    @property
    def is_wanted(self) -> bool:
        return bool(self.jobs)

    def do(self, n_jobs: int = 1) -> None:
        """The next jobs, while the loop stands still."""
        for _ in range(n_jobs):
            future, function, arguments = self.jobs.popleft()
            try:
                result = function(*arguments)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)


async def settle() -> None:
    """Lets the loop do all that it can without the engine."""
    for _ in range(20):
        await asyncio.sleep(0)


class Started:
    """A drive without workers over two slots, and an engine that waits for the test."""

    def __init__(self) -> None:
        self.engine = HeldEngine()
        self.scheduler = Scheduler(n_slots=2, ctx=CTX, chunk_tokens=16)
        core = StarterCore(self.scheduler, ToyEmbedding(), ToyEngine(2, CTX), ToyHead())
        self.drive = Drive(core, self.scheduler, self.engine, None)  # type: ignore[arg-type]
        self._tasks: list[asyncio.Task[None]] = []

    async def talk(self, inbox: Inbox, prompt: list[int], max_new: int = 6) -> asyncio.Task[None]:
        """Begins a conversation that never leaves by itself, up to the point where the engine has to do something."""

        async def hold() -> None:
            async with self.drive.running(inbox, prompt, GREEDY, max_new=max_new, stop_ids=frozenset()):
                await asyncio.Event().wait()

        self._tasks.append(asyncio.create_task(hold()))
        await settle()
        return self._tasks[-1]

    async def drain(self) -> None:
        await settle()
        while self.engine.jobs:
            self.engine.do()
            await settle()

    async def leave(self) -> None:
        """Cancels all conversations, and lets the engine end them."""
        for task in self._tasks:
            task.cancel()
        await self.drain()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def is_idle(self) -> bool:
        return not self.drive._inboxes and all(slot.owner is None for slot in self.scheduler._slots)


@pytest.fixture
async def started() -> AsyncIterator[Started]:
    started = Started()
    driving = asyncio.create_task(started.drive.run())
    yield started
    await started.leave()
    driving.cancel()
    with suppress(asyncio.CancelledError):
        await driving


def taken(inbox: Inbox) -> list[int | None]:
    tokens = []
    while not inbox.empty():
        token = inbox.get_nowait()
        assert isinstance(token, NewToken)
        tokens.append(token.token_id)
    return tokens


async def test_tokens_that_are_made_before_the_loop_knows_of_the_sequence_reach_it(started: Started) -> None:
    first, second = new_inbox(), new_inbox()
    await started.talk(first, [1, 2, 3])
    started.engine.do()  # admits the first
    await settle()
    await started.talk(second, [4, 5])  # the first one's steps wait, and behind them the admission of the second
    started.engine.do()  # makes room at once, for somebody waits
    await settle()  # the next steps wait behind the admission
    started.engine.do(2)  # it is admitted and wholly answered, and the loop has heard of neither
    await started.drain()
    assert taken(first) == reference([1, 2, 3], GREEDY, 6, CTX, frozenset())
    assert taken(second) == reference([4, 5], GREEDY, 6, CTX, frozenset())
    await started.leave()
    assert started.is_idle


async def test_one_that_is_cancelled_while_it_is_admitted_leaves_nothing_behind(started: Started) -> None:
    await started.talk(new_inbox(), [1, 2, 3])
    await started.leave()
    assert started.is_idle


async def test_one_that_is_cancelled_twice_while_it_is_admitted_leaves_nothing_behind(started: Started) -> None:
    """As by two presses of Ctrl-C, or by a deadline while everything ends."""
    cancelled = await started.talk(new_inbox(), [1, 2, 3])
    cancelled.cancel()
    await settle()
    await started.leave()
    assert started.is_idle


async def test_one_that_is_cancelled_in_the_middle_leaves_nothing_behind(started: Started) -> None:
    await started.talk(new_inbox(), [1, 2, 3])
    started.engine.do()
    await settle()
    assert not started.is_idle
    await started.leave()
    assert started.is_idle


async def test_one_that_is_refused_is_told_why_and_leaves_nothing_behind(started: Started) -> None:
    refused = await started.talk(new_inbox(), [1] * CTX)
    await started.drain()
    with pytest.raises(PromptTooLong):
        await refused
    assert started.is_idle
