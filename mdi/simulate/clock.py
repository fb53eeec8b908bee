"""Virtual time: what happens next happens now."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Clock:
    """Events in the order of their times; those of one time in the order in which they were set."""

    now_s: float = 0.0
    events: int = 0
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _set: int = 0

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(time_s, self.now_s), self._set, event))
        self._set += 1

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._queue:
            self.now_s, _, event = heapq.heappop(self._queue)
            self.events += 1
            event()


@dataclass(slots=True)
class Place:
    """A stage or a hop: it works on one thing at a time, in the order in which they come."""

    clock: Clock
    busy_s: float = 0.0
    jobs: int = 0
    _free_s: float = 0.0

    def work(self, seconds: float, then: Callable[[], None]) -> None:
        self._free_s = max(self._free_s, self.clock.now_s) + seconds

        def done() -> None:
            self.busy_s += seconds
            self.jobs += 1
            then()

        self.clock.at(self._free_s, done)
