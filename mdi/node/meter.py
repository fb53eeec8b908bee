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

MAX_UNREAD = (
    8192  # steps between two looks, which are 2 s apart: the built-in model makes some 4000; further ones push out the oldest
)

Totals = dict[int, StepTimes]  # by rows


class Meter:
    """Counts all steps but the first WARM_UP_STEPS. The engine thread adds, the event loop reads.

    A step that is added is only remembered, for a token waits for it; whoever looks does the sums.
    """

    def __init__(self) -> None:
        self._unread: deque[tuple[Sequence[Span], float]] = deque(maxlen=MAX_UNREAD)
        self._seen = 0
        self._totals: Totals = {}
        self._recent: deque[StepTimes] = deque(maxlen=RECENT_STEPS)

    def add(self, spans: Sequence[Span], seconds: float) -> None:
        """One step, whose spans do not change any more. One without rows, or that no clock could tell from nothing, does not count."""
        self._unread.append((spans, seconds))

    @property
    def totals(self) -> Totals:
        """Of all steps so far."""
        self._read()
        return self._totals.copy()

    @property
    def recent(self) -> list[StepTimes]:
        """The last RECENT_STEPS steps, one by one."""
        self._read()
        return list(self._recent)

    def _read(self) -> None:
        for _ in range(len(self._unread)):  # each is taken in one operation of the interpreter, while others may be added
            self._count(*self._unread.popleft())

    def _count(self, spans: Sequence[Span], seconds: float) -> None:
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


def between(before: Totals, now: Totals) -> list[StepTimes]:
    """What was counted between two looks at the same meter's totals."""
    news = (times if rows not in before else times.without(before[rows]) for rows, times in now.items())
    return [times for times in news if times is not None]
