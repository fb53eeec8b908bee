"""Long work, shown on stderr: bars where a person looks, a line for each finished phase elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mdi.cli.terminal import note

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from mdi.pipeline.api import OnProgress, Progress

MAX_PHASES = 4096  # a phase for each node and block of the largest cluster's deployment would be noise long before


def quiet(progress: Progress) -> None:
    """For `--json`: shows nothing."""


@contextmanager
def shown() -> Iterator[OnProgress]:
    """Bars while the context is open; after it, and without a terminal, a line when a phase is done."""
    lines = _Lines()
    if not sys.stderr.isatty():
        yield lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        drawn = _Drawn(bars)
        sink: list[OnProgress] = [drawn]
        try:
            yield lambda progress: sink[0](progress)
        finally:
            sink[0] = lines  # what happens later, such as a recovery, must not be lost


class _Lines:
    def __init__(self) -> None:
        self._finished: set[tuple[str, str]] = set()

    def __call__(self, progress: Progress) -> None:
        phase = (progress.key, progress.label)
        if progress.done < progress.total:
            self._finished.discard(phase)  # it began again
        elif phase not in self._finished and len(self._finished) < MAX_PHASES:
            self._finished.add(phase)
            note(progress.label)


class _Drawn:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        total = max(progress.total, 1)
        done = min(progress.done, total) if progress.total else total
        if progress.key not in self._tasks:
            if len(self._tasks) >= MAX_PHASES:
                return
            self._tasks[progress.key] = self._bars.add_task(progress.label, total=total)
        self._bars.update(self._tasks[progress.key], description=progress.label, completed=done, total=total)
