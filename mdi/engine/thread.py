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

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class EngineThread:
    """Runs functions one after another. Its queue is bounded by its callers: each awaits its result before it asks again."""

    def __init__(self, name: str = "engine") -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
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
        self._jobs.put((loop, future, function, arguments))
        return await future

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
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop has ended; nobody waits any more
                continue
            finally:  # while it waits, nothing may keep what the last function held: a stage is hundreds of MiB
                del job, loop, future, function, arguments, result, error


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
