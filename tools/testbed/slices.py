"""Slow processors by time slices: every few milliseconds each node of a testbed runs for its share of them, and is frozen for the rest.

    python slices.py FILE PERIOD_MS

A quota limits what is used, so a node that has waited begins its step at full speed, and the kernel looks at quotas only with its clock
tick (4 ms at 250 Hz). A ring's nodes do wait, for each other: a step of 5 ms after a pause took 0.3 to 0.5 times as long as a quarter
of a core should take, and one of 20 ms 0.8 to 0.9 times. Slices depend on nothing but the time, as a slow processor does.

FILE is JSON: {node: [file of its freezer, what freezes, what thaws, share]}; it is read again when it changes. Slices are laid end to end,
so that nodes whose shares fill one core never need two. On SIGTERM all nodes thaw. The standard library alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.2  # how soon another share is noticed
PRIORITY = 10  # real time: a slice must not end later because somebody computes


@dataclass(frozen=True, slots=True)
class Edge:
    """At this part of each period, 0 to 1, the node begins to run or ceases to."""

    at: float
    node: str
    runs: bool


def edges(shares: Mapping[str, float]) -> list[Edge]:
    """In the order of time. A slice that would pass the end of the period goes on at the beginning of the next.

    A node with a whole core, or more, is never frozen, and takes no place.
    """
    found, start = [], 0.0
    for node, share in shares.items():
        if share < 1:
            end = (start + share) % 1.0
            found += [Edge(start, node, True), Edge(end, node, False)]
            start = end
    # Where one slice ends as another begins, the first node stops before the other one goes.
    return sorted(found, key=lambda edge: (edge.at, edge.runs))


class Freezers:
    """The files that freeze and thaw the nodes. A node that is gone is left alone."""

    def __init__(self, table: Mapping[str, Sequence[object]]) -> None:
        self.shares = {node: float(str(row[3])) for node, row in table.items()}
        self._words = {node: (str(row[1]).encode(), str(row[2]).encode()) for node, row in table.items()}
        self._files = {node: os.open(str(row[0]), os.O_WRONLY | os.O_CLOEXEC) for node, row in table.items()}

    def set(self, node: str, *, runs: bool) -> None:
        with suppress(OSError):
            os.write(self._files[node], self._words[node][runs])

    def close(self) -> None:
        """All run."""
        for node, descriptor in self._files.items():
            self.set(node, runs=True)
            os.close(descriptor)


def govern(path: Path, period_s: float) -> None:
    """For ever; SystemExit thaws all."""
    while True:
        written_ns = path.stat().st_mtime_ns
        freezers = Freezers(json.loads(path.read_text()))
        try:
            _rounds(freezers, period_s, path, written_ns)
        finally:
            freezers.close()


def _rounds(freezers: Freezers, period_s: float, path: Path, written_ns: int) -> None:
    """Until the file is another one, which is looked at every LOOK_S."""
    plan = edges(freezers.shares)
    for node, share in freezers.shares.items():
        freezers.set(node, runs=share >= 1)
    start_s = look_s = time.monotonic()
    while True:
        now_s = time.monotonic()
        if now_s >= look_s:
            if path.stat().st_mtime_ns != written_ns:
                return
            look_s = now_s + LOOK_S
        start_s += period_s
        if start_s < now_s:  # it was stopped itself: what is past is past
            start_s = now_s
        for edge in plan:
            time.sleep(max(0.0, start_s + edge.at * period_s - time.monotonic()))
            freezers.set(edge.node, runs=edge.runs)
        if not plan:
            time.sleep(LOOK_S)


def main(arguments: Sequence[str]) -> None:
    def end(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    path, period_ms = arguments
    print("ready", flush=True)
    with suppress(FileNotFoundError):  # the testbed is gone
        govern(Path(path), float(period_ms) / 1e3)


if __name__ == "__main__":
    main(sys.argv[1:])
