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
    """`asyncio.run`, in which SIGTERM and a closed terminal unwind everything in order, as Ctrl-C does.

    Raises KeyboardInterrupt after Ctrl-C and SystemExit(128 + number) after the others.
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
    try:
        return await coroutine
    except asyncio.CancelledError:
        if received:
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)


@contextmanager
def first_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C calls `action`; a second one does what it did outside, so nobody is locked in."""
    loop = asyncio.get_running_loop()
    outside = signal.getsignal(signal.SIGINT)

    def restore() -> None:
        if loop.remove_signal_handler(signal.SIGINT):
            signal.signal(signal.SIGINT, outside)

    def once() -> None:
        restore()
        action()

    loop.add_signal_handler(signal.SIGINT, once)
    try:
        yield
    finally:
        restore()
