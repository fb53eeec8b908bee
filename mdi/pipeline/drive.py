"""The loop that keeps steps going round: it only moves bytes; everything else happens in the engine thread (see `core.py`).

When the ring fails, or another plan is wished for, the same loop changes the epoch (`epochs.py`): so no step runs meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol, TypeAlias

from mdi.engine.constraint import Guide
from mdi.engine.sampling import SamplingParams
from mdi.engine.thread import EngineThread
from mdi.errors import ClusterError, InternalError, MdiError
from mdi.pipeline.api import FinishReason
from mdi.pipeline.core import NewToken, StarterCore, Turn
from mdi.pipeline.epochs import Cause, Wish
from mdi.pipeline.ring import Ring
from mdi.pipeline.scheduler import Scheduler
from mdi.pipeline.scheduler import Sequence as Running

ENDINGS = 3  # beside tokens, at most once each: the answer's own failure, the failure of everything, and the word to stop
RETRY_S = 10.0  # without nodes that could hold the model, between looks for them

Inbox: TypeAlias = "asyncio.Queue[NewToken | BaseException | None]"  # None: whoever reads it wants no more


def new_inbox(ctx: int) -> Inbox:
    """Room for a whole answer in a context of `ctx` tokens, so that nobody who puts into it has to wait for its reader."""
    return asyncio.Queue(ctx + ENDINGS)


class Change(Protocol):
    """`Epochs.change`."""

    async def __call__(self, cause: Cause, *, progressed: bool = False) -> Ring | None: ...


class Drive:
    """Runs sequences to their ends. `run` must be running as a task while `running` is used.

    `change` None: there is no other plan, and a failure is final.
    """

    def __init__(
        self,
        core: StarterCore,
        scheduler: Scheduler,
        engine: EngineThread,
        ring: Ring | None,
        change: Change | None = None,
    ) -> None:
        self._core = core
        self._scheduler = scheduler
        self._engine = engine
        self._change = change
        self._inboxes: dict[Running, Inbox] = {}
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self._down: MdiError | None = None  # why no epoch runs: no plan was possible
        self._progressed = False  # a token came since the last change
        self._wished: tuple[Wish, asyncio.Future[None]] | None = None
        self._take_ring(ring)

    @property
    def failure(self) -> BaseException | None:
        """Why no answer can be computed: for good, or until nodes are back."""
        return self._failure or self._down

    async def run(self) -> None:
        """Until cancelled. A failure of our own ends everything: every running answer gets the error, and so does each later one."""
        try:
            while True:
                await self._one_turn_or_change()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = error
            for inbox in tuple(self._inboxes.values()):  # the engine thread may be adding or removing one
                inbox.put_nowait(error)
        finally:
            if self._wished is not None:
                self._wished[1].cancel()

    async def change(self, wish: Wish) -> None:
        """Changes the plan between two steps. Raises what no plan could be made for; ClusterError while another change is wished for."""
        if self._failure is not None:
            raise self._failure
        if self._wished is not None:
            raise ClusterError("another change of plan is on its way", hint="wait for it to end")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wished = wish, done
        self._wake.set()
        await done

    async def _one_turn_or_change(self) -> None:
        if self._wished is not None:
            (wish, done), self._wished = self._wished, None
            await self._begin_anew(wish, done)
        elif self._down is not None:
            await self._try_again()
        elif self._ring is not None and self._ring.failure is not None:
            await self._begin_anew(self._ring.failure)
        else:
            try:
                await self._one_turn()
            except MdiError as error:
                await self._begin_anew(error)

    async def _try_again(self) -> None:
        """When somebody asks for an answer, or after a while: whoever only looks, as `/health` does, shall see that nodes are back."""
        if not self._scheduler.has_work:
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await self._wake.wait()
        if self._wished is None:
            await self._begin_anew(Wish("trying again"))

    async def _begin_anew(self, cause: Cause, done: asyncio.Future[None] | None = None) -> None:
        """The next epoch, or the error for every running answer: later ones may find the nodes back."""
        progressed, self._progressed = self._progressed, False
        failure: MdiError | None = None
        if self._change is None:
            assert isinstance(cause, MdiError)
            raise cause
        try:
            self._take_ring(await self._change(cause, progressed=progressed))
        except InternalError:
            raise
        except MdiError as error:
            failure = error
            self._take_ring(None)
            await self._disappoint(error)
        self._down = failure
        if done is not None and not done.done():
            done.set_result(None) if failure is None else done.set_exception(failure)

    def _take_ring(self, ring: Ring | None) -> None:
        self._ring = ring
        if ring is not None:
            ring.on_failure(self._wake.set)

    async def _disappoint(self, error: MdiError) -> None:
        """Every running answer ends with the error; its slot is free at once, so that nothing waits for an epoch that may never come."""
        for inbox in await self._engine.run(self._cancel_all):
            inbox.put_nowait(error)

    def _cancel_all(self) -> list[Inbox]:
        """In the engine thread."""
        running = [sequence for sequence in self._inboxes if sequence.finish is None]
        for sequence in running:
            sequence.finish = FinishReason.CANCELLED
            self._scheduler.release(sequence)
        return [self._inboxes[sequence] for sequence in running]

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
        run = self._engine.run_brief if core.is_brief else self._engine.run
        turn = await run(core.turn, result)
        try:
            if turn.frame is not None:
                await self._ring.send(turn.frame)
        finally:  # its tokens are the sequences' own, whatever becomes of the frame
            self._deliver(turn)

    def _alone(self, loop: asyncio.AbstractEventLoop) -> None:
        """Steps without workers, in the engine thread: it does not wait for the loop between them (0.7 ms a token at 2 threads)."""
        while self._core.can_send and not self._engine.is_wanted and self._wished is None:
            loop.call_soon_threadsafe(self._deliver, self._core.turn())

    def _deliver(self, turn: Turn) -> None:
        self._progressed = self._progressed or bool(turn.tokens)
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
