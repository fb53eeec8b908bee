from __future__ import annotations

import asyncio
import threading
import weakref

import pytest

from mdi.engine.thread import EngineThread


class Thing:
    def touch(self, other: object) -> int:
        return 1


async def test_functions_run_one_after_another_and_their_errors_come_back() -> None:
    with EngineThread() as thread:
        results = await asyncio.gather(*(thread.run(divmod, 7, n) for n in (1, 2, 0)), return_exceptions=True)
    assert results[:2] == [(7, 0), (3, 1)]
    assert isinstance(results[2], ZeroDivisionError)


async def test_a_waiting_thread_keeps_nothing_of_the_last_function() -> None:
    """A bound method holds its stage, which is hundreds of MiB."""
    loop, gone = asyncio.get_running_loop(), [asyncio.Event(), asyncio.Event()]
    with EngineThread() as thread:
        thing, argument = Thing(), Thing()
        for each, event in zip((thing, argument), gone, strict=True):
            weakref.finalize(each, loop.call_soon_threadsafe, event.set)
        del each
        assert await thread.run(thing.touch, argument) == 1
        del thing, argument
        async with asyncio.timeout(10):
            await asyncio.gather(*(event.wait() for event in gone))


async def test_a_cancelled_caller_does_not_stop_the_thread() -> None:
    with EngineThread() as thread:
        task = asyncio.create_task(thread.run(sum, range(1_000_000)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await thread.run(int) == 0


async def test_what_is_brief_runs_here_unless_something_else_computes() -> None:
    here = threading.get_ident()
    with EngineThread() as thread:
        assert await thread.run_brief(threading.get_ident) == here
        gate = threading.Event()
        held = asyncio.create_task(thread.run(gate.wait, 10))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(thread.run_brief(threading.get_ident))
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.set()
        assert await held
        assert await waiting != here
        assert await thread.run_brief(threading.get_ident) == here


async def test_a_function_whose_caller_went_away_still_counts_until_it_ends() -> None:
    with EngineThread() as thread:
        gate = threading.Event()
        task = asyncio.create_task(thread.run(gate.wait, 10))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        waiting = asyncio.create_task(thread.run_brief(threading.get_ident))
        await asyncio.sleep(0)
        gate.set()
        assert await waiting != threading.get_ident()


async def test_an_error_of_what_is_brief_comes_back_as_it_is() -> None:
    with EngineThread() as thread:
        with pytest.raises(ZeroDivisionError):
            await thread.run_brief(divmod, 1, 0)
        assert await thread.run_brief(int) == 0
