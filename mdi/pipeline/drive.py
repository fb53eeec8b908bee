"""The loop that keeps steps going round: it only moves bytes; everything else happens in the engine thread (see `core.py`)."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from mdi.engine.thread import EngineThread
from mdi.pipeline.api import FinishReason
from mdi.pipeline.core import NewToken, StarterCore
from mdi.pipeline.ring import Ring
from mdi.pipeline.scheduler import Scheduler, Sequence

MAX_WAITING_TOKENS = 1 << 16  # per answer: more than any context; a reader that stops reading stops its answer by cancelling it

Inbox: TypeAlias = "asyncio.Queue[NewToken | BaseException]"


class Drive:
    """Runs sequences to their ends. `run` must be running as a task while `submit` is used."""

    def __init__(self, core: StarterCore, scheduler: Scheduler, engine: EngineThread, ring: Ring | None) -> None:
        self._core = core
        self._scheduler = scheduler
        self._engine = engine
        self._ring = ring
        self._inboxes: dict[Sequence, Inbox] = {}
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Until cancelled. When a step fails, every running answer gets the error, and so does each later one."""
        try:
            while True:
                await self._one_turn()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = error
            for inbox in self._inboxes.values():
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
        turn = await self._engine.run(core.turn, result)
        if turn.frame is not None and self._ring is not None:
            await self._ring.send(turn.frame)
        for token in turn.tokens:
            if (inbox := self._inboxes.get(token.sequence)) is not None:
                inbox.put_nowait(token)

    async def submit(self, sequence: Sequence) -> Inbox:
        """Starts a sequence that the scheduler admitted. Its tokens come in the inbox, or the error that ended everything."""
        if self._failure is not None:
            raise self._failure
        inbox: Inbox = asyncio.Queue(MAX_WAITING_TOKENS)
        self._inboxes[sequence] = inbox
        self._wake.set()
        return inbox

    async def end(self, sequence: Sequence) -> None:
        """Must follow every `submit`. A sequence that is still running is cancelled; its KV stays for the next turn."""
        self._inboxes.pop(sequence, None)

        def cancel() -> None:
            if sequence.finish is None:
                sequence.finish = FinishReason.CANCELLED
                self._scheduler.release(sequence)

        await self._engine.run(cancel)

    async def admit(self, *arguments: object, **options: object) -> Sequence:
        """`Scheduler.admit`, in the thread that owns the scheduler."""
        return await self._engine.run(lambda: self._scheduler.admit(*arguments, **options))  # type: ignore[arg-type]
