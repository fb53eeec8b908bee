"""What the daemon's sweeper does each second, with the real function that gives memory back."""

from __future__ import annotations

import asyncio
import ctypes
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from mdi.node import daemon
from mdi.node.stages import LEASE_S
from mdi.profile.memory import give_back_freed_memory
from tests.node.test_stages import Bench, bench, until  # noqa: F401 (fixture)

MIB = 1 << 20
PIECE_BYTES = 64 << 10  # below glibc's threshold for memory of its own: freed pieces stay in the heap
N_PIECES = 2048


@asynccontextmanager
async def sweeping(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:  # noqa: F811
    monkeypatch.setattr(daemon, "SWEEP_INTERVAL_S", 0.01)
    sweeper = asyncio.create_task(daemon._sweep(bench.stages))
    try:
        yield
        assert not sweeper.done()
    finally:
        await daemon._end(sweeper)


async def test_the_sweeper_gives_memory_back_after_a_stage_ended_and_only_then(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counted() -> None:
        calls.append(len(list(bench.stages)))
        give_back_freed_memory()

    monkeypatch.setattr(daemon, "give_back_freed_memory", counted)
    bench.loader.gate.set()
    await bench.stages.load(bench.of("s"))
    async with sweeping(bench, monkeypatch):
        await asyncio.sleep(0.1)
        assert calls == []
        bench.now_s = LEASE_S
        await until(lambda: bool(calls))
        await asyncio.sleep(0.1)
    assert calls == [0]  # once, when the stage was gone


async def test_leases_go_on_ending_after_a_sweep_that_failed(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> None:
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(daemon, "give_back_freed_memory", refuse)
    bench.loader.gate.set()
    async with sweeping(bench, monkeypatch):
        for session in ("one", "two"):
            await bench.stages.load(bench.of(session))
            bench.now_s += LEASE_S
            await until(lambda: bench.stages.used_bytes == 0)
            await until(lambda: "the driver is gone" in caplog.text)
            caplog.clear()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as on Linux")
def test_freed_memory_goes_back_to_the_system() -> None:
    """128 MiB of pieces as small as an allocator keeps, with one in use above them, as a stage leaves its heap."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    process = psutil.Process()
    pieces = [libc.malloc(PIECE_BYTES) for _ in range(N_PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE_BYTES)
    above = libc.malloc(PIECE_BYTES)
    try:
        for piece in pieces:
            libc.free(piece)
        held = process.memory_info().rss
        give_back_freed_memory()
        assert held - process.memory_info().rss > N_PIECES * PIECE_BYTES * 3 // 4
    finally:
        libc.free(above)
