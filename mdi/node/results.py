"""What the last stage of a ring gives, on its way to the starter's Collect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import grpc

from mdi.errors import LinkError
from mdi.plan.forecast import MOST_STEPS

Sink: TypeAlias = Callable[[bytes], Awaitable[None]]

# Results that a starter has not taken yet. It has at most that many steps in flight, so the ring never waits for it to read. They are
# empty for all of a prompt but its end, and a few rows in decode.
MAX_WAITING_RESULTS = MOST_STEPS


class Results:
    """From one producer to one collector, in order. While the collector waits, the producer writes itself: one task less to wake."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_WAITING_RESULTS)
        self._write: Sink | None = None  # of a collector that waits

    async def put(self, result: bytes) -> None:
        """Waits while MAX_WAITING_RESULTS are not taken. Raises LinkError when the collector goes away meanwhile."""
        if self._write is None:
            await self._waiting.put(result)
            return
        try:
            await self._write(result)
        except grpc.aio.BaseError:
            raise LinkError("the starter does not collect any more") from None

    async def collect(self, write: Sink) -> None:
        """Gives all results to `write` until `end`."""
        try:
            while True:
                self._write = write
                data = await self._waiting.get()
                self._write = None
                if data is None:
                    return
                await write(data)
        finally:
            self._write = None

    def end(self) -> None:
        """The last one that waits may be lost: the stage is gone."""
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait(None)
