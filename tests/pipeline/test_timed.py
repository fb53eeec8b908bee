"""The clock around the ring and around the starter's own part changes nothing of what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdi.errors import LinkError, MdiError
from mdi.node.meter import WARM_UP_STEPS, Meter
from mdi.pipeline import timed
from mdi.pipeline.part import OwnPart
from mdi.pipeline.timed import TimedEngine, TimedHead, TimedPart, TimedRing
from mdi.plan.live import DECODE_ROWS, MIN_STEPS
from mdi.plan.plan import BlockRange
from mdi.wire.frame import Row
from tests.node.test_stage import HIDDEN, AddOne

ROW_BYTES = 1000
ONE, CHUNK = bytes(ROW_BYTES + 200), bytes((DECODE_ROWS + 1) * ROW_BYTES + 200)


class Clock:
    """Seconds, at the test's word."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timed, "time", clock)
    return clock


class Echo:
    """A ring that gives back what was sent, after `trip_s` on the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._frames: list[bytes] = []
        self.trip_s = 0.0
        self.failure: MdiError | None = None

    def on_failure(self, call: Callable[[], None]) -> None:
        self.call = call

    async def send(self, frame: bytes) -> None:
        self._frames.append(frame)

    async def receive(self) -> bytes:
        self._clock.now_s += self.trip_s
        return self._frames.pop(0)


async def trip(ring: TimedRing, echo: Echo, seconds: float, frame: bytes = ONE) -> None:
    echo.trip_s = seconds
    await ring.send(frame)
    assert await ring.receive() == frame


async def test_trips_are_counted_from_look_to_look_and_idle_time_is_not(clock: Clock) -> None:
    ring = TimedRing(echo := Echo(clock), ROW_BYTES)
    for seconds in (1.0, 2.0, 6.0):
        clock.now_s += 1000.0
        await trip(ring, echo, seconds)
    assert ring.take_trip_s() == pytest.approx(3.0)
    assert ring.take_trip_s() is None
    for _ in range(MIN_STEPS - 1):
        await trip(ring, echo, 1.0)
    assert ring.take_trip_s() is None


async def test_chunks_and_steps_that_meet_others_on_the_way_do_not_count(clock: Clock) -> None:
    ring = TimedRing(echo := Echo(clock), ROW_BYTES)
    for _ in range(5):
        await trip(ring, echo, 9.0, CHUNK)
        await ring.send(ONE)
        await ring.send(ONE)
        await ring.receive()
        await ring.send(ONE)
        await ring.receive()
        await ring.receive()
    assert ring.take_trip_s() is None
    for _ in range(MIN_STEPS):
        await trip(ring, echo, 2.0)
    assert ring.take_trip_s() == pytest.approx(2.0)


async def test_failures_pass(clock: Clock) -> None:
    ring = TimedRing(echo := Echo(clock), ROW_BYTES)
    woken = asyncio.Event()
    ring.on_failure(woken.set)
    assert ring.failure is None
    echo.failure = LinkError("gone")
    echo.call()
    assert woken.is_set()
    assert ring.failure is echo.failure


def test_an_engine_and_a_head_do_what_they_did(clock: Clock) -> None:
    meter, rows = Meter(), (Row(0, 7, 2, 1),)
    engine = TimedEngine(Slow(clock, 2.0), meter)
    for _ in range(WARM_UP_STEPS + 1):
        np.testing.assert_array_equal(engine.forward(rows, HIDDEN), HIDDEN + 1)
    (times,) = meter.totals.values()
    assert (times.rows, times.context_tokens, times.seconds) == (2, 7, 2.0)
    assert (engine.weight_bytes, engine.kv_bytes) == (0, 0)
    logits = Meter()
    head = TimedHead(SlowHead(clock, 3.0), logits)
    for _ in range(WARM_UP_STEPS + 1):
        np.testing.assert_array_equal(head.logits(HIDDEN[:1]), HIDDEN[:1] * 2)
    (times,) = logits.totals.values()
    assert (times.rows, times.seconds, head.weight_bytes) == (1, 3.0, 5)


class Slow(AddOne):
    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def forward(self, spans: object, hidden: Any) -> Any:
        self._clock.now_s += self._seconds
        return super().forward(spans, hidden)


class SlowHead:
    weight_bytes = 5

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def logits(self, hidden: Any) -> Any:
        self._clock.now_s += self._seconds
        return hidden * 2


def test_other_blocks_have_another_meter_and_the_same_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the engines of `OwnPart` replaced: they are loaded anew for other blocks only."""

    def begin(part: OwnPart, *_: object) -> None:
        part.head, part._blocks, part._engine = SlowHead(Clock(), 0.0), BlockRange(0, 0), None

    def load(part: OwnPart, blocks: BlockRange) -> AddOne | None:
        if blocks != part._blocks:
            part._blocks, part._engine = blocks, AddOne() if len(blocks) else None
        return part._engine  # type: ignore[return-value]

    monkeypatch.setattr(OwnPart, "__init__", begin)
    monkeypatch.setattr(OwnPart, "load", load)
    part = TimedPart(None, Path(), None, None, 1)  # type: ignore[arg-type]
    assert isinstance(part.head, TimedHead)
    assert part.load(BlockRange(0, 0)) is None
    first, meter = part.load(BlockRange(0, 3)), part.blocks
    assert isinstance(first, TimedEngine)
    assert part.load(BlockRange(0, 3)) is first
    assert part.blocks is meter
    assert part.load(BlockRange(0, 2)) is not first
    assert part.blocks is not meter
    assert part.load(BlockRange(0, 0)) is None
