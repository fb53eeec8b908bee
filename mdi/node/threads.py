"""Work that blocks, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """The function's result, computed in a thread of the loop's pool.

    A caller that is cancelled still waits for the function's end: a thread cannot be stopped, and what it works on must not be
    counted as free, or be cleaned up, beneath it.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
