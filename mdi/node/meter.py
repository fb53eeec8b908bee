"""What the steps of a stage took, by this device's own clock: what others need to know of real traffic. Synchronous, no network."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mdi.engine.batch import Span
from mdi.plan.live import MAX_STEP_S, StepTime

# A status tells of at most so many steps, those before it: a median of 64 is off by a tenth of their spread, and they take 1.5 KiB.
KEPT_STEPS = 64
# The first steps after a load touch weights and KV for the first time and let the runtime choose its buffers: a prompt and three tokens.
WARM_UP_STEPS = 4


class Meter:
    """The last KEPT_STEPS steps but for the first WARM_UP_STEPS. The engine thread adds, the event loop reads."""

    def __init__(self) -> None:
        self._seen = 0
        self._kept: deque[tuple[int, StepTime]] = deque(maxlen=KEPT_STEPS)

    def add(self, spans: Sequence[Span], seconds: float) -> None:
        """A step that computed no rows, or that no clock could tell from nothing, does not count."""
        rows = sum(span.count for span in spans)
        if not rows or seconds <= 0:
            return
        if self._seen >= WARM_UP_STEPS:
            context_tokens = round(sum(span.position * span.count for span in spans) / rows)
            self._kept.append((self._seen, StepTime(rows, context_tokens, min(seconds, MAX_STEP_S))))
        self._seen += 1

    @property
    def seen(self) -> int:
        """How many steps were counted so far, which is where `since` goes on."""
        return self._seen

    def since(self, seen: int = 0) -> list[StepTime]:
        """Those that came after the first `seen` ones, as far as they are kept; the oldest first."""
        kept = self._kept.copy()  # one operation of the interpreter: the engine thread cannot add in its middle
        return [step for number, step in kept if number >= seen]
