"""The answers of one request on their way: each has a task that waits for its slot and takes its tokens as they come.

What the tasks took lies in one buffer until it is sent, so an answer goes on, and frees its slot, whatever its reader does. The buffer
is bounded by what a context can hold; how long a reader may take none of it, by `protocol.READER_TIMEOUT_S`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias

from starlette.types import Receive

from mdi.errors import InternalError
from mdi.pipeline.api import Answer, FinishReason, Piece, Request
from mdi.serve.admission import Reservation
from mdi.serve.errors import ApiError, unavailable
from mdi.serve.service import Service

ENDINGS = 3  # events of an answer beside its tokens: text that was held back, the Answer, a failure
CLIENT_CLOSED = 499  # nginx's code: nobody hears it, the log does

Event: TypeAlias = tuple[int, Piece | Answer]  # with the index of its answer


class ClientGone(ApiError):
    """Nobody listens any more."""

    def __init__(self) -> None:
        super().__init__(CLIENT_CLOSED, "the client went away")


@dataclass(slots=True)
class _Failed:
    error: BaseException


class Answers:
    """Events of several answers as they come, each answer's in its order; an Answer is the last of its own."""

    def __init__(self, n: int, ctx: int) -> None:
        self._events: asyncio.Queue[Event | _Failed] = asyncio.Queue(n * (ctx + ENDINGS) + 1)
        self._open = n
        self._failure: BaseException | None = None
        self.finished: list[Answer] = []
        """For the log, in the order of their ends."""

    def put(self, index: int, event: Piece | Answer) -> None:
        self._events.put_nowait((index, event))
        if isinstance(event, Answer):
            self.finished.append(event)

    def fail(self, error: BaseException) -> None:
        """Once the buffer is full there is nothing more to say than what is in it."""
        if not self._events.full():
            self._events.put_nowait(_Failed(error))

    @property
    def done(self) -> bool:
        return self._open == 0

    async def next(self, silence_s: float | None = None) -> list[Event]:
        """All that has come since; waits for one, or gives nothing after `silence_s`. Once all that came before it is told: raises what an
        answer failed with, or ClientGone.

        It waits in the caller's own task: a further one would cost two turns of the loop for each token.
        """
        came: list[Event] = []
        while self._failure is None and not (came and self._events.empty()):
            event = self._events.get_nowait() if came else await self._first(silence_s)
            if event is None:
                return []
            if isinstance(event, _Failed):
                self._failure = event.error
            else:
                self._open -= isinstance(event[1], Answer)
                came.append(event)
        if self._failure is not None and not came:
            raise self._failure
        return came

    async def _first(self, silence_s: float | None) -> Event | _Failed | None:
        try:
            async with asyncio.timeout(silence_s):
                return await self._events.get()
        except TimeoutError:
            return None

    async def rest(self) -> dict[int, Answer]:
        """Every answer, by its index, once all are there. The pipeline bounds the time of each step."""
        answers: dict[int, Answer] = {}
        while not self.done:
            answers |= {index: event for index, event in await self.next() if isinstance(event, Answer)}
        return answers


@asynccontextmanager
async def answering(
    service: Service, reservation: Reservation, requests: Sequence[Request], receive: Receive, arrived_s: float
) -> AsyncIterator[Answers]:
    """Leaving the context ends what still runs, and so frees its slots on every stage. `arrived_s` by time.perf_counter."""
    answers = Answers(len(requests), service.starter.ctx)
    tasks = [
        asyncio.create_task(_take(service, reservation, answers, index, request, arrived_s), name=f"answer {index}")
        for index, request in enumerate(requests)
    ]
    tasks.append(asyncio.create_task(_watch(receive, answers), name="watch the client"))
    try:
        yield answers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _take(
    service: Service, reservation: Reservation, answers: Answers, index: int, request: Request, arrived_s: float
) -> None:
    """One answer, from the queue to its end."""
    try:
        async with service.admission.slot(reservation):
            with service.metrics.answer(request, arrived_s) as measured:
                async with aclosing(service.starter.generate(request)) as events:
                    async for event in events:
                        measured.take(event, time.perf_counter())
                        if isinstance(event, Answer) and event.finish_reason is FinishReason.CANCELLED:
                            raise ending()
                        answers.put(index, event)
    except Exception as error:
        answers.fail(error)


def ending() -> ApiError:
    return unavailable("the server is shutting down", code="shutting_down")


async def _watch(receive: Receive, answers: Answers) -> None:
    """Until the client goes away: its connection says nothing else while it is answered. It has no deadline but the answer's end."""
    while (await receive())["type"] != "http.disconnect":
        pass
    answers.fail(ClientGone())


def check_room(service: Service, prompt_ids: Sequence[int], param: str) -> tuple[int, ...]:
    """`prompt_ids`, of which there are some, and fewer than the context holds. Raises ApiError, before anything waits for a slot."""
    if not prompt_ids:
        raise ApiError(HTTPStatus.BAD_REQUEST, "the prompt is empty", param=param, code="invalid_value")
    if len(prompt_ids) >= service.starter.ctx:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"the prompt has {len(prompt_ids)} tokens, and the context {service.starter.ctx}, with room for at least one more",
            param=param,
            code="context_length_exceeded",
        )
    if max(prompt_ids) >= service.starter.model.config.vocab_size or min(prompt_ids) < 0:
        raise InternalError("the tokenizer gave an id that the model does not have")
    return tuple(prompt_ids)
