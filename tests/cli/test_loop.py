from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from mdi.cli.daemons import _end
from mdi.cli.loop import run_async


async def interrupted() -> None:
    """Waits for ever; somebody presses Ctrl-C meanwhile."""
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()


def test_however_often_ctrl_c_is_pressed_all_is_unwound() -> None:
    ended = []

    async def nested(depth: int) -> None:
        try:
            await (nested(depth - 1) if depth else interrupted())
        finally:
            try:
                await interrupted()
            finally:
                ended.append(depth)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_async(nested(3))
    assert ended == [0, 1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is before


async def test_a_child_is_killed_when_nobody_waits_for_its_end_any_more() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", deaf, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    ending = asyncio.create_task(_end(process))
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL
