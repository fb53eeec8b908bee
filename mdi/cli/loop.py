"""Running a command's coroutine, and what signals do meanwhile."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
ENDING = (signal.SIGTERM, signal.SIGHUP)


def run_async(coroutine: Coroutine[object, object, T]) -> T:
    """`asyncio.run`, in which Ctrl-C, SIGTERM and a closed terminal unwind everything in order.

    A further one cuts short what the unwinding waits for just then, and leaves out none of it: with asyncio's own handler the second
    Ctrl-C leaves the loop, and processes that were to be ended stay. Raises KeyboardInterrupt after Ctrl-C and
    SystemExit(128 + number) after the others.
    """
    return asyncio.run(_unwound(coroutine), debug=False)


async def _unwound(coroutine: Coroutine[object, object, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in ENDING:
        loop.add_signal_handler(number, end, number)
    # Not as a handler of the loop: `Interrupts` and the line editor put this one back when they are done.
    before = signal.signal(signal.SIGINT, lambda number, _: loop.call_soon_threadsafe(end, number))
    try:
        return await coroutine
    except asyncio.CancelledError:
        if received:
            raise (KeyboardInterrupt() if received[0] == signal.SIGINT else SystemExit(128 + received[0])) from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        for number in ENDING:
            loop.remove_signal_handler(number)


class Interrupts:
    """Ctrl-C in a session: it stops the answer that runs, and does nothing between answers.

    A second one for the same answer does what it did outside, so that nobody is locked in.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._outside = signal.getsignal(signal.SIGINT)
        self._presses: int | None = None  # None between answers

    def __enter__(self) -> Interrupts:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._pressed)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, self._outside)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While an answer runs."""
        self.__enter__()  # the line editor took the signal for itself, and let go of it
        self._presses = 0
        try:
            yield
        finally:
            self._presses = None

    def _pressed(self) -> None:
        if self._presses is None:
            return
        self._presses += 1
        if self._presses == 1:
            self._stop()
        else:
            self.__exit__()
            signal.raise_signal(signal.SIGINT)
