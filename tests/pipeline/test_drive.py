"""The loop and the engine thread hand sequences to each other: none is lost and none stays behind, whatever comes first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from mdi.engine.protocol import StageShape
from mdi.engine.sampling import SamplingParams
from mdi.engine.thread import EngineThread
from mdi.errors import ClusterError, FrameError, InternalError, LinkError, MdiError, NoRoom, PromptTooLong
from mdi.node.stage import LoadedStage
from mdi.pipeline.core import NewToken, StarterCore, Turn
from mdi.pipeline.drive import Drive, Inbox, new_inbox
from mdi.pipeline.epochs import Cause, Wish
from mdi.pipeline.scheduler import Scheduler
from mdi.wire.frame import FrameLimits
from mdi.wire.ring import RingTarget
from tests.node.test_stage import SPEC
from tests.pipeline.toy import WIDTH, ToyEmbedding, ToyEngine, ToyHead, reference

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

    def __init__(self, make_core: type[StarterCore] = StarterCore) -> None:
        self.engine = HeldEngine()
        self.scheduler = Scheduler(n_slots=2, ctx=CTX, chunk_tokens=16)
        core = make_core(self.scheduler, ToyEmbedding(), ToyEngine(2, CTX), ToyHead())
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
    first, second = new_inbox(CTX), new_inbox(CTX)
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
    await started.talk(new_inbox(CTX), [1, 2, 3])
    await started.leave()
    assert started.is_idle


async def test_one_that_is_cancelled_twice_while_it_is_admitted_leaves_nothing_behind(started: Started) -> None:
    """As by two presses of Ctrl-C, or by a deadline while everything ends."""
    cancelled = await started.talk(new_inbox(CTX), [1, 2, 3])
    cancelled.cancel()
    await settle()
    await started.leave()
    assert started.is_idle


async def test_one_that_is_cancelled_in_the_middle_leaves_nothing_behind(started: Started) -> None:
    await started.talk(new_inbox(CTX), [1, 2, 3])
    started.engine.do()
    await settle()
    assert not started.is_idle
    await started.leave()
    assert started.is_idle


async def test_one_that_is_refused_is_told_why_and_leaves_nothing_behind(started: Started) -> None:
    refused = await started.talk(new_inbox(CTX), [1] * CTX)
    await started.drain()
    with pytest.raises(PromptTooLong):
        await refused
    assert started.is_idle


class BrokenAfterAnswer(StarterCore):
    """Computes one answer to its end, then fails."""

    def turn(self, result: bytes | None = None) -> Turn:
        if self.steps == CTX - 1:
            raise LinkError("it is gone")
        return super().turn(result)


async def test_an_inbox_holds_all_that_can_come_when_nobody_reads() -> None:
    """A whole context of tokens, the failure of everything, and the word to stop."""
    started = Started(BrokenAfterAnswer)
    driving = asyncio.create_task(started.drive.run())
    inbox = new_inbox(CTX)
    await started.talk(inbox, [1], max_new=CTX)
    await started.drain()
    await started.talk(new_inbox(CTX), [2])
    await started.drain()
    await driving
    inbox.put_nowait(None)
    assert inbox.qsize() == CTX - 1 + 2
    await started.leave()


class FaultyRing:
    """One worker with all blocks. At its `n_good`-th frame it fails, when that is sent or when its result is asked for."""

    def __init__(self, epoch: int, n_good: int | None, *, at_send: bool) -> None:
        spec = replace(SPEC, target=RingTarget("s", epoch), shape=StageShape(2, CTX, 1), max_tokens=16)
        self._stage = LoadedStage(spec, ToyEngine(2, CTX))
        self._left = n_good
        self._at_send = at_send
        self._results: deque[bytes] = deque()
        self.failure: MdiError | None = None
        self._notice: Callable[[], None] | None = None

    def on_failure(self, call: Callable[[], None]) -> None:
        self._notice = call

    def die(self) -> None:
        """As the stream to a worker ends between answers."""
        self.failure = LinkError("it died between answers")
        assert self._notice is not None
        self._notice()

    async def send(self, frame: bytes) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0 and self._at_send:
                raise LinkError("it died")
        self._results.append(self._stage.compute(frame))

    async def receive(self) -> bytes:
        if self._left is not None and self._left < 0:
            raise FrameError("it answers wrongly")
        return self._results.popleft()


class Recovered:
    """A drive over rings that fail one after another; `plan` are their (good frames, fails at send), None: no plan is possible."""

    def __init__(self, *plan: tuple[int | None, bool] | None) -> None:
        self.engine = EngineThread()
        self.scheduler = Scheduler(n_slots=2, ctx=CTX, chunk_tokens=16)
        self.core = StarterCore(self.scheduler, ToyEmbedding(), None, ToyHead())
        self._plan, self._epoch = list(plan), 0
        self.causes: list[Cause] = []
        self.progress: list[bool] = []
        self.ring: FaultyRing | None = None
        self.begin()
        self.drive = Drive(self.core, self.scheduler, self.engine, self.ring, self.change)

    def begin(self) -> None:
        self._epoch += 1
        n_good, at_send = self._plan.pop(0) or (0, False)
        self.ring = FaultyRing(self._epoch, n_good, at_send=at_send)
        self.core.begin_epoch(self._epoch, None, FrameLimits(WIDTH, 16, 2, CTX, "f32"), 2)

    async def change(self, cause: Cause, *, progressed: bool = False) -> FaultyRing | None:
        self.causes.append(cause)
        self.progress.append(progressed)
        await self.engine.run(self.core.end_epoch)
        if isinstance(cause, InternalError):
            raise cause
        if self._plan[0] is None:
            self._plan.pop(0)
            raise NoRoom("nobody can hold it")
        await self.engine.run(self.begin)
        return self.ring

    async def answer(self, prompt: list[int], max_new: int = 12) -> list[int]:
        inbox, tokens = new_inbox(CTX), []
        async with self.drive.running(inbox, prompt, GREEDY, max_new=max_new, stop_ids=frozenset()):
            while True:
                token = await inbox.get()
                if isinstance(token, BaseException):
                    raise token
                assert token is not None
                tokens += [] if token.token_id is None else [token.token_id]
                if token.is_last:
                    return tokens

    async def __aenter__(self) -> Recovered:
        self._driving = asyncio.create_task(self.drive.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._driving.cancel()
        with suppress(asyncio.CancelledError):
            await self._driving
        self.engine.close()
        assert not self.drive._inboxes
        assert all(slot.owner is None for slot in self.scheduler._slots)


PROMPTS = ([1, 2, 3], [4, 5])
ANSWERS = [reference(prompt, GREEDY, 12, CTX, frozenset()) for prompt in PROMPTS]


@pytest.mark.parametrize("at_send", [False, True])
@pytest.mark.parametrize("n_good", range(9))
async def test_answers_go_on_over_one_ring_after_another(n_good: int, at_send: bool) -> None:
    """Tokens that a step gave before its next frame could not be sent are not lost either."""
    async with asyncio.timeout(10), Recovered((n_good, at_send), (3, True), (4, False), (None, False)) as recovered:
        assert await asyncio.gather(*(recovered.answer(prompt) for prompt in PROMPTS)) == ANSWERS
    kinds = [type(cause) for cause in recovered.causes]
    assert kinds == [LinkError if at_send else FrameError, LinkError, FrameError]


async def test_when_no_plan_is_possible_all_answers_are_told_and_later_ones_try_again() -> None:
    async with asyncio.timeout(10), Recovered((2, False), None, None, (None, False)) as recovered:
        found = await asyncio.gather(*(recovered.answer(prompt) for prompt in PROMPTS), return_exceptions=True)
        assert [type(each) for each in found] == [NoRoom, NoRoom]
        with pytest.raises(NoRoom):
            await recovered.answer(PROMPTS[0])
        assert await recovered.answer(PROMPTS[0]) == ANSWERS[0]
    assert [type(cause) for cause in recovered.causes] == [FrameError, Wish, Wish]


async def test_a_ring_that_dies_between_answers_is_replaced_before_the_next() -> None:
    async with asyncio.timeout(10), Recovered((None, False), (None, False)) as recovered:
        assert await recovered.answer(PROMPTS[0]) == ANSWERS[0]
        recovered.ring.die()
        await settle()
        while len(recovered.causes) < 1:  # noqa: ASYNC110 (the engine thread has its part in it)
            await asyncio.sleep(0)
        assert await recovered.answer(PROMPTS[1]) == ANSWERS[1]
    assert [str(cause) for cause in recovered.causes] == ["it died between answers"]


async def test_a_wish_changes_the_plan_between_two_steps() -> None:
    async with asyncio.timeout(10), Recovered((None, False), (None, False)) as recovered:
        running = asyncio.gather(*(recovered.answer(prompt) for prompt in PROMPTS))
        await settle()
        await recovered.drive.change(Wish("a node came"))
        assert await running == ANSWERS
        assert [str(cause.reason) for cause in recovered.causes] == ["a node came"]


async def test_a_wish_that_cannot_be_granted_is_told_to_who_wished() -> None:
    async with asyncio.timeout(10), Recovered((None, False), None, (None, False)) as recovered:
        with pytest.raises(NoRoom):
            await recovered.drive.change(Wish("a node came"))
        assert await recovered.answer(PROMPTS[0]) == ANSWERS[0]


async def test_two_wishes_at_once_are_refused() -> None:
    async with asyncio.timeout(10), Recovered((None, False), (None, False)) as recovered:
        first = asyncio.create_task(recovered.drive.change(Wish("one")))
        await asyncio.sleep(0)
        with pytest.raises(ClusterError, match="on its way"):
            await recovered.drive.change(Wish("two"))
        await first


async def test_our_own_bug_is_final() -> None:
    class Broken(StarterCore):
        def turn(self, result: bytes | None = None) -> Turn:
            raise InternalError("a bug")

    async with asyncio.timeout(10), Recovered((None, False)) as recovered:
        recovered.core.turn = Broken.turn.__get__(recovered.core)  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(InternalError, match="a bug"):
                await recovered.answer(PROMPTS[0])
        with pytest.raises(InternalError):
            await recovered.drive.change(Wish("too late"))
