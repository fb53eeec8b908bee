"""The queue alone: who is next, who is refused, and that nothing is left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.serve.admission import Admission
from mdi.serve.errors import ApiError, unavailable


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Answer:
    """One that runs until it is told to end."""

    def __init__(self, admission: Admission, client: str, n: int = 1) -> None:
        self.client = client
        self.runs = asyncio.Event()
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._run(admission, n))

    async def _run(self, admission: Admission, n: int) -> None:
        with admission.reserve(self.client, n) as reservation:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(n):
                    tasks.create_task(self._hold(admission, reservation))

    async def _hold(self, admission: Admission, reservation: object) -> None:
        async with admission.slot(reservation):  # type: ignore[arg-type]
            self.runs.set()
            await self.end.wait()

    async def finish(self) -> None:
        self.end.set()
        await self.task

    async def refusal(self) -> ApiError:
        with pytest.raises((ApiError, ExceptionGroup)) as refused:
            await self.task
        error: BaseException = refused.value
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, ApiError)
        return error


async def settle() -> None:
    """Everything that can go on now has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def queue(n_slots: int, max_queue: int) -> AsyncIterator[tuple[Admission, Clock]]:
    clock = Clock()
    admission = Admission(n_slots, max_queue, clock)
    yield admission, clock
    await settle()
    admission.check_integrity()


async def test_more_than_the_slots_wait_and_more_than_the_queue_are_refused() -> None:
    async with queue(2, 1) as (admission, _):
        answers = [Answer(admission, "a") for _ in range(3)]
        await settle()
        assert (admission.running, admission.waiting) == (2, 1)
        refusal = await Answer(admission, "a").refusal()
        assert refusal.status == 429
        assert refusal.retry_after_s is not None
        await answers[0].finish()
        await asyncio.wait_for(answers[2].runs.wait(), 1)
        for answer in answers[1:]:
            await answer.finish()


async def test_a_free_slot_goes_to_the_client_with_the_fewest_answers() -> None:
    async with queue(2, 10) as (admission, _):
        greedy = [Answer(admission, "greedy") for _ in range(5)]
        await settle()
        modest = Answer(admission, "modest")
        await settle()
        assert not modest.runs.is_set()
        await greedy[0].finish()
        await settle()
        assert modest.runs.is_set()
        assert [answer.runs.is_set() for answer in greedy] == [True, True, False, False, False]
        for answer in (*greedy, modest):
            answer.end.set()
        for answer in (*greedy, modest):
            await answer.task


async def test_clients_with_one_answer_each_take_turns() -> None:
    async with queue(1, 10) as (admission, _):
        order: list[str] = []

        async def ask(client: str) -> None:
            with admission.reserve(client, 1) as reservation:
                async with admission.slot(reservation):
                    order.append(client)
                    await asyncio.sleep(0)

        await asyncio.gather(*(ask(client) for client in "aaaabbcc"))
        assert sorted(order[:3]) == ["a", "b", "c"]
        assert sorted(order[3:6]) == ["a", "b", "c"]


async def test_a_full_queue_makes_room_for_a_client_with_less_in_it() -> None:
    async with queue(1, 4) as (admission, _):
        greedy = [Answer(admission, "greedy") for _ in range(5)]
        await settle()
        modest = Answer(admission, "modest")
        await settle()
        assert (await greedy[4].refusal()).status == 429  # its newest
        assert admission.waiting == 4
        assert (await Answer(admission, "greedy").refusal()).status == 429
        for answer in (*greedy[:4], modest):
            answer.end.set()
        for answer in (*greedy[:4], modest):
            await answer.task


async def test_nobody_loses_a_place_to_a_request_that_is_refused_all_the_same() -> None:
    async with queue(1, 4) as (admission, _):
        greedy = [Answer(admission, "greedy") for _ in range(5)]
        await settle()
        assert (await Answer(admission, "modest", 3).refusal()).status == 429
        assert admission.waiting == 4
        for answer in greedy:
            answer.end.set()
        for answer in greedy:
            await answer.task


async def test_what_is_cancelled_while_it_waits_or_runs_gives_its_place_back() -> None:
    async with queue(1, 4) as (admission, _):
        runs, waits, other = (Answer(admission, client) for client in "abc")
        await settle()
        waits.task.cancel()
        await asyncio.gather(waits.task, return_exceptions=True)
        assert (admission.running, admission.waiting) == (1, 1)
        runs.task.cancel()
        await asyncio.gather(runs.task, return_exceptions=True)
        await settle()
        assert other.runs.is_set()
        await other.finish()


async def test_closing_refuses_who_waits_and_lets_who_runs_go_on() -> None:
    async with queue(1, 4) as (admission, _):
        runs, waits = Answer(admission, "a"), Answer(admission, "b")
        await settle()
        admission.close(unavailable("over", code="over"))
        assert (await waits.refusal()).status == 503
        assert (await Answer(admission, "c").refusal()).status == 503
        assert not runs.task.done()
        await runs.finish()


async def test_several_answers_of_one_request_are_admitted_whole_or_not_at_all() -> None:
    async with queue(2, 1) as (admission, _):
        three = Answer(admission, "a", 3)
        await settle()
        assert (admission.running, admission.waiting) == (2, 1)
        assert (await Answer(admission, "b", 2).refusal()).status == 429
        assert (await Answer(admission, "b", 4).refusal()).status == 400  # for which there never will be room
        await three.finish()


async def test_who_is_refused_is_told_when_to_come_again() -> None:
    async with queue(1, 0) as (admission, clock):
        for _ in range(40):
            answer = Answer(admission, "a")
            await settle()
            clock.now_s += 7
            await answer.finish()
        answer = Answer(admission, "a")
        await settle()
        assert (await Answer(admission, "b").refusal()).retry_after_s == 7
        await answer.finish()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.sampled_from(["end", "cancel", "stay"])), max_size=25))
def test_no_order_of_events_loses_a_slot(asked: list[tuple[str, int, str]]) -> None:
    async def play() -> None:
        admission = Admission(2, 4, Clock())
        answers: list[Answer] = []
        for client, n, then in asked:
            answers.append(Answer(admission, client, n))
            await settle()
            assert admission.running <= 2
            assert admission.waiting <= 4
            assert admission.running == 2 or not admission.waiting  # nobody waits beside a free slot
            if then == "end":
                answers[len(answers) // 2].end.set()
            elif then == "cancel":
                answers[len(answers) // 2].task.cancel()
        for answer in answers:
            answer.end.set()
        await asyncio.gather(*(answer.task for answer in answers), return_exceptions=True)
        admission.check_integrity()

    asyncio.run(play())
