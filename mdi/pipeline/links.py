"""Links between all pairs of nodes, measured once in a while and remembered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from mdi.cluster.private_files import write_private
from mdi.node.links import LinkTimes

MAX_AGE_S = 3600.0  # Wi-Fi changes with who walks by; an hour saves the seconds of most starts
MAX_REMEMBERED = 4096  # pairs: 64 nodes, every one with every other
MAX_NUMBER = 1e12  # no time in seconds that a clock shows, or that a link takes, is beyond it
PARALLEL = 4  # measurements at once; each pair of a round has its own two nodes

Pair = tuple[str, str]  # node ids, smaller first: a round trip measures both directions
Measure = Callable[[Pair], Coroutine[Any, Any, LinkTimes]]


class LinkMemory:
    """Measured links in one JSON file. What is damaged in it is not there."""

    def __init__(self, path: Path, decode_bytes: int, prefill_bytes: int, now_s: Callable[[], float] = time.time) -> None:
        self._path = path
        self._sizes = f"{decode_bytes}/{prefill_bytes}"
        self._now_s = now_s

    def recall(self, pair: Pair) -> LinkTimes | None:
        if (entry := self._read().get(self._key(pair))) is None:
            return None
        at_s, decode_s, prefill_s = entry
        return LinkTimes(float(decode_s), float(prefill_s)) if 0 <= self._now_s() - at_s <= MAX_AGE_S else None

    def remember(self, times: dict[Pair, LinkTimes]) -> None:
        """Raises UserError when the file cannot be written. Of two commands that remember at once, the last one's table stays."""
        entries = self._read() | {
            self._key(pair): [self._now_s(), link.decode_s, link.prefill_s] for pair, link in times.items()
        }
        newest = dict(sorted(entries.items(), key=lambda entry: -entry[1][0])[:MAX_REMEMBERED])
        write_private(self._path, json.dumps(newest).encode())

    def _key(self, pair: Pair) -> str:
        return f"{pair[0]} {pair[1]} {self._sizes}"

    def _read(self) -> dict[str, list[float]]:
        try:
            entries = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return {key: entry for key, entry in entries.items() if _is_entry(entry)} if isinstance(entries, dict) else {}


def _is_entry(value: object) -> bool:
    """Whether it is [Unix time, seconds, seconds]; NaN fails every comparison."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(number, int | float) and 0 <= number <= MAX_NUMBER for number in value)
    )


async def measure_pairs(pairs: list[Pair], measure: Measure, on_done: Callable[[int], None]) -> dict[Pair, LinkTimes]:
    """Every pair, in rounds in which no node takes part twice: a busy end would make a link look slow."""
    left, found = list(pairs), dict[Pair, LinkTimes]()
    while left:
        busy: set[str] = set()
        this_round: list[Pair] = []
        for pair in left:
            if len(this_round) < PARALLEL and not busy & set(pair):
                this_round.append(pair)
                busy |= set(pair)
        results = await asyncio.gather(*(measure(pair) for pair in this_round))
        found.update(zip(this_round, results, strict=True))
        left = [pair for pair in left if pair not in found]
        on_done(len(found))
    return found
