"""One thread in which a process computes, so that its event loop stays free for the network.

Two steps at once would only fight for the same cores: everything that computes in a process goes through one such thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

# A step that takes less may run in the loop's own thread. Handing it over and back costs 0.15 ms where a token's weights have pushed
# everything else out of the caches: of a step of 10 ms more than one percent, of a longer one not worth keeping the network waiting.
BRIEF_S = 0.02
BRIEF_TOKENS = 8  # a step of so few takes about as long as one of one: weights are read once

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class EngineThread:
    """Runs functions one after another. Its queue is bounded by its callers: each awaits its result before it asks again."""

    def __init__(self, name: str = "engine") -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._n_open = 0  # functions that have not come back to their loop
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> EngineThread:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """The function's result. When the caller is cancelled, the function still runs to its end and its result is dropped."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._n_open += 1
        self._jobs.put((loop, future, function, arguments))
        return await future

    async def run_brief(self, function: Callable[..., T], *arguments: object) -> T:
        """As `run`, for what takes less than BRIEF_S: when nothing else computes, here and now."""
        if self._n_open:
            return await self.run(function, *arguments)
        return function(*arguments)

    @property
    def is_wanted(self) -> bool:
        """Whether functions wait for their turn; a long one looks, and ends early."""
        return not self._jobs.empty()

    def close(self) -> None:
        """Ends the thread after what is queued."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, function, arguments = job
            result: Any = None
            error: BaseException | None = None
            try:
                result = function(*arguments)
            except BaseException as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(self._settle, future, result, error)
            except RuntimeError:  # the loop has ended; nobody waits any more
                continue
            finally:  # while it waits, nothing may keep what the last function held: a stage is hundreds of MiB
                del job, loop, future, function, arguments, result, error

    def _settle(self, future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
        self._n_open -= 1
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
