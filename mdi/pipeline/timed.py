"""The starter's own clock around its own part and around the ring. They do what they wrap does, and remember what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdi.engine.backend import Backend
from mdi.engine.batch import Span
from mdi.engine.protocol import Engine, Head
from mdi.errors import MdiError
from mdi.model.packed import PackedModel
from mdi.node.meter import Meter
from mdi.pipeline.part import OwnPart
from mdi.pipeline.problem import Workload
from mdi.pipeline.ring import Ring
from mdi.plan.live import DECODE_ROWS, MIN_STEPS
from mdi.plan.plan import BlockRange


class TimedEngine:
    """An Engine whose steps a meter counts."""

    def __init__(self, engine: Engine, meter: Meter) -> None:
        self._engine = engine
        self._meter = meter

    @property
    def weight_bytes(self) -> int:
        return self._engine.weight_bytes

    @property
    def kv_bytes(self) -> int:
        return self._engine.kv_bytes

    def forward(self, spans: Sequence[Span], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        started_s = time.perf_counter()
        result = self._engine.forward(spans, hidden)
        self._meter.add(spans, time.perf_counter() - started_s)
        return result


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a head computes is rows without a past."""

    count: int
    slot: int = 0
    position: int = 0


class TimedHead:
    """A Head whose steps a meter counts."""

    def __init__(self, head: Head, meter: Meter) -> None:
        self._head = head
        self._meter = meter

    @property
    def weight_bytes(self) -> int:
        return self._head.weight_bytes

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        started_s = time.perf_counter()
        result = self._head.logits(hidden)
        self._meter.add([_Rows(len(hidden))], time.perf_counter() - started_s)
        return result


class TimedPart(OwnPart):
    """`blocks` counts the steps of the blocks that are loaded now, `logits` those of the head."""

    def __init__(self, packed: PackedModel, packs: Path, workload: Workload, backend: Backend, threads: int) -> None:
        super().__init__(packed, packs, workload, backend, threads)
        self.blocks, self.logits = Meter(), Meter()
        self.head = TimedHead(self.head, self.logits)
        self._timed: TimedEngine | None = None

    def load(self, blocks: BlockRange) -> Engine | None:
        """As `OwnPart.load`; engines are held here too, and let go first."""
        if blocks == self._blocks:
            return self._timed
        self._timed = None
        engine = super().load(blocks)
        if engine is not None:
            self.blocks = Meter()
            self._timed = TimedEngine(engine, self.blocks)
        return self._timed


class TimedRing:
    """A Ring that remembers how long decode steps were away that were alone in it: others wait for each other on the way."""

    def __init__(self, ring: Ring, row_bytes: int) -> None:
        """`row_bytes`: what a row takes in a frame. A frame of more than DECODE_ROWS of them is a chunk of a prompt."""
        self._ring = ring
        self._most_bytes = (DECODE_ROWS + 1) * row_bytes  # a header is smaller than a row of any model that is worth a ring
        self._away = 0
        self._left_s: float | None = None  # when the only step that is away left, if it is one of decoding
        self._trips = 0
        self._trips_s = 0.0

    @property
    def failure(self) -> MdiError | None:
        return self._ring.failure

    def on_failure(self, call: Callable[[], None]) -> None:
        self._ring.on_failure(call)

    async def send(self, frame: bytes) -> None:
        self._away += 1
        alone = self._away == 1 and len(frame) <= self._most_bytes
        self._left_s = time.perf_counter() if alone else None
        await self._ring.send(frame)

    async def receive(self) -> bytes:
        result = await self._ring.receive()
        if self._left_s is not None:
            self._trips += 1
            self._trips_s += time.perf_counter() - self._left_s
        self._left_s = None
        self._away -= 1
        return result

    def take_trip_s(self) -> float | None:
        """The mean of the trips since the last call; None when there were few."""
        trips, trips_s = self._trips, self._trips_s
        self._trips, self._trips_s = 0, 0.0
        return trips_s / trips if trips >= MIN_STEPS else None
