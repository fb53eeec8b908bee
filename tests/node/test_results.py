from __future__ import annotations

import asyncio

import grpc
import pytest

from mdi.errors import LinkError
from mdi.node.results import MAX_WAITING_RESULTS, Results


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Collector:
    """Takes results when it is told to."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.writing = 0
        self.may_take = asyncio.Event()
        self.may_take.set()

    async def write(self, data: bytes) -> None:
        assert not self.writing, "gRPC takes one write at a time"
        self.writing += 1
        await self.may_take.wait()
        self.taken.append(data)
        self.writing -= 1


async def test_results_keep_their_order_whoever_writes_them() -> None:
    results, collector = Results(), Collector()
    await results.put(b"0")
    collecting = asyncio.create_task(results.collect(collector.write))
    collector.may_take.clear()
    await settle()
    await results.put(b"1")  # while the collector writes 0
    await results.put(b"2")
    collector.may_take.set()
    await settle()
    assert collector.taken == [b"0", b"1", b"2"]
    await results.put(b"3")  # while it waits: written at once
    assert collector.taken[-1] == b"3"
    results.end()
    await collecting


async def test_a_producer_waits_when_nobody_collects() -> None:
    results = Results()
    for _ in range(MAX_WAITING_RESULTS):
        await results.put(b"")
    one_more = asyncio.create_task(results.put(b"last"))
    await settle()
    assert not one_more.done()
    collector = Collector()
    collecting = asyncio.create_task(results.collect(collector.write))
    await one_more
    await settle()
    assert len(collector.taken) == MAX_WAITING_RESULTS + 1
    assert collector.taken[-1] == b"last"
    results.end()
    await collecting


async def test_the_end_comes_through_when_no_room_is_left() -> None:
    results, collector = Results(), Collector()
    for _ in range(MAX_WAITING_RESULTS):
        await results.put(b"")
    results.end()
    await results.collect(collector.write)
    assert len(collector.taken) == MAX_WAITING_RESULTS - 1


async def test_a_collector_that_goes_away_is_the_links_fault_and_the_next_one_goes_on() -> None:
    results = Results()

    async def gone(_: bytes) -> None:
        raise grpc.aio.UsageError("the call is over")

    collecting = asyncio.create_task(results.collect(gone))
    await settle()
    with pytest.raises(LinkError, match="does not collect"):
        await results.put(b"lost")
    collecting.cancel()
    await asyncio.gather(collecting, return_exceptions=True)
    await results.put(b"kept")
    collector = Collector()
    collecting = asyncio.create_task(results.collect(collector.write))
    await settle()
    assert collector.taken == [b"kept"]
    results.end()
    await collecting
