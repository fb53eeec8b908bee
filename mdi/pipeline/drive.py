"""The loop that keeps steps going round: it only moves bytes; everything else happens in the engine thread (see `core.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from mdi.engine.constraint import Guide
from mdi.engine.sampling import SamplingParams
from mdi.engine.thread import EngineThread
from mdi.pipeline.api import FinishReason
from mdi.pipeline.core import NewToken, StarterCore, Turn
from mdi.pipeline.ring import Ring
from mdi.pipeline.scheduler import Scheduler
from mdi.pipeline.scheduler import Sequence as Running

ENDINGS = 3  # beside tokens, at most once each: the answer's own failure, the failure of everything, and the word to stop

Inbox: TypeAlias = "asyncio.Queue[NewToken | BaseException | None]"  # None: whoever reads it wants no more


def new_inbox(ctx: int) -> Inbox:
    """Room for a whole answer in a context of `ctx` tokens, so that nobody who puts into it has to wait for its reader."""
    return asyncio.Queue(ctx + ENDINGS)


class Drive:
    """Runs sequences to their ends. `run` must be running as a task while `running` is used."""

    def __init__(self, core: StarterCore, scheduler: Scheduler, engine: EngineThread, ring: Ring | None) -> None:
        self._core = core
        self._scheduler = scheduler
        self._engine = engine
        self._ring = ring
        self._inboxes: dict[Running, Inbox] = {}
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None

    @property
    def failure(self) -> BaseException | None:
        """Why no answer can be computed any more."""
        return self._failure

    async def run(self) -> None:
        """Until cancelled. When a step fails, every running answer gets the error, and so does each later one."""
        try:
            while True:
                await self._one_turn()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = error
            for inbox in tuple(self._inboxes.values()):  # the engine thread may be adding or removing one
                inbox.put_nowait(error)

    async def _one_turn(self) -> None:
        core, result = self._core, None
        if not core.can_send:
            if core.in_flight and self._ring is not None:
                result = await self._ring.receive()
            else:
                self._wake.clear()
                await self._wake.wait()
                return
        if self._ring is None:
            await self._engine.run(self._alone, asyncio.get_running_loop())
            return
        turn = await self._engine.run(core.turn, result)
        if turn.frame is not None:
            await self._ring.send(turn.frame)
        self._deliver(turn)

    def _alone(self, loop: asyncio.AbstractEventLoop) -> None:
        """Steps without workers, in the engine thread: it does not wait for the loop between them (0.7 ms a token at 2 threads)."""
        while self._core.can_send and not self._engine.is_wanted:
            loop.call_soon_threadsafe(self._deliver, self._core.turn())

    def _deliver(self, turn: Turn) -> None:
        for token in turn.tokens:
            if (inbox := self._inboxes.get(token.sequence)) is not None:
                inbox.put_nowait(token)
        for sequence, error in turn.failures:
            if (inbox := self._inboxes.get(sequence)) is not None:
                inbox.put_nowait(error)

    @asynccontextmanager
    async def running(
        self,
        inbox: Inbox,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        max_new: int | None,
        stop_ids: frozenset[int],
        speculate: bool = False,
        guide: Guide | None = None,
    ) -> AsyncIterator[Running]:
        """A sequence on its way: its tokens come in the inbox, or the error that ended everything.

        Leaving the context ends it; its KV stays for the next turn. Raises what `Scheduler.admit` does, or an earlier failure.
        """

        admitted: list[Running] = []

        def admit() -> None:
            running = self._scheduler.admit(
                prompt, params, max_new=max_new, stop_ids=stop_ids, speculate=speculate, guide=guide
            )
            self._inboxes[running] = inbox  # in the same job: the next step may already compute its first token
            admitted.append(running)

        if self._failure is not None:
            raise self._failure
        try:
            await self._engine.run(admit)
            if self._failure is not None:
                raise self._failure
            self._wake.set()
            yield admitted[0]
        finally:  # queued behind `admit`, so it ends one whose caller went away before it was admitted, however often it is cancelled
            await self._engine.run(self._end, admitted)

    def _end(self, admitted: list[Running]) -> None:
        """In the engine thread. A sequence that has not finished is cancelled."""
        for running in admitted:
            del self._inboxes[running]
            if running.finish is None:
                running.finish = FinishReason.CANCELLED
                self._scheduler.release(running)
