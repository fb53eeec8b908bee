"""What the steps of a stage took, by this device's own clock: what others need to know of real traffic. Synchronous, no network."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mdi.engine.batch import Span
from mdi.plan.live import MAX_STEP_S, StepTimes

# The first steps after a load touch weights and KV for the first time and let the runtime choose its buffers: a prompt and three tokens.
WARM_UP_STEPS = 4
# Numbers of rows that are told apart: eight of decoding, and of prompts the whole chunk and what is left of some. A status takes 1.5 KiB.
MAX_KINDS = 64
RECENT_STEPS = 256  # what `mdi nodes` calls the last steps: some seconds at the speeds of people's devices

Totals = dict[int, StepTimes]  # by rows


class Meter:
    """Counts all steps but the first WARM_UP_STEPS. The engine thread adds, the event loop reads."""

    def __init__(self) -> None:
        self._seen = 0
        self._totals: Totals = {}
        self._recent: deque[StepTimes] = deque(maxlen=RECENT_STEPS)

    def add(self, spans: Sequence[Span], seconds: float) -> None:
        """One step. One without rows, or that no clock could tell from nothing, does not count."""
        rows = sum(span.count for span in spans)
        if not rows or seconds <= 0:
            return
        self._seen += 1
        if self._seen <= WARM_UP_STEPS:
            return
        step = StepTimes(rows, 1, sum(span.position * span.count for span in spans) / rows, min(seconds, MAX_STEP_S))
        self._recent.append(step)
        known = self._totals.get(rows)
        if known is not None or len(self._totals) < MAX_KINDS:
            self._totals[rows] = step if known is None else known.and_more(step)

    @property
    def totals(self) -> Totals:
        """Of all steps so far."""
        return self._totals.copy()  # one operation of the interpreter: the engine thread cannot add in its middle

    @property
    def recent(self) -> list[StepTimes]:
        """The last RECENT_STEPS steps, one by one."""
        return list(self._recent.copy())


def between(before: Totals, now: Totals) -> list[StepTimes]:
    """What was counted between two looks at the same meter's totals."""
    news = (times if rows not in before else times.without(before[rows]) for rows, times in now.items())
    return [times for times in news if times is not None]
