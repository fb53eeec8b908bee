"""Links between all pairs of nodes, measured once in a while and remembered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from mdi.node.links import LinkTimes

MAX_AGE_S = 3600.0  # Wi-Fi changes with who walks by; an hour saves the seconds of most starts
MAX_REMEMBERED = 4096  # pairs: 64 nodes, every one with every other
PARALLEL = 4  # measurements at once; each pair of a round has its own two nodes

Pair = tuple[str, str]  # node ids, smaller first: a round trip measures both directions
Measure = Callable[[Pair], Coroutine[Any, Any, LinkTimes]]


class LinkMemory:
    """Measured links in one JSON file. A damaged file is an empty one."""

    def __init__(self, path: Path, decode_bytes: int, prefill_bytes: int, now_s: Callable[[], float] = time.time) -> None:
        self._path = path
        self._sizes = f"{decode_bytes}/{prefill_bytes}"
        self._now_s = now_s

    def recall(self, pair: Pair) -> LinkTimes | None:
        try:
            at_s, decode_s, prefill_s = self._read()[self._key(pair)]
            return LinkTimes(float(decode_s), float(prefill_s)) if 0 <= self._now_s() - at_s <= MAX_AGE_S else None
        except (KeyError, ValueError, TypeError):
            return None

    def remember(self, times: dict[Pair, LinkTimes]) -> None:
        entries = self._read() | {
            self._key(pair): [self._now_s(), link.decode_s, link.prefill_s] for pair, link in times.items()
        }
        newest = dict(sorted(entries.items(), key=lambda entry: -entry[1][0])[:MAX_REMEMBERED])
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(newest))
        partial.replace(self._path)

    def _key(self, pair: Pair) -> str:
        return f"{pair[0]} {pair[1]} {self._sizes}"

    def _read(self) -> dict[str, list[float]]:
        try:
            entries = json.loads(self._path.read_text())
            return {key: value for key, value in entries.items() if len(value) == 3}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}


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
