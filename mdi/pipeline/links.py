"""Links between all pairs of nodes, measured once in a while and remembered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi.cluster.private_files import write_private
from mdi.errors import MdiError
from mdi.node.links import Link, LinkTimes
from mdi.pipeline.rounds import Pair, rounds

MAX_AGE_S = 3600.0  # Wi-Fi changes with who walks by; an hour saves the seconds of most starts
MAX_REMEMBERED = 4096  # pairs: 64 nodes, every one with every other
MAX_NUMBER = 1e12  # no time in seconds that a clock shows, or that a link takes, is beyond it

Measure = Callable[[Pair], Coroutine[Any, Any, Link]]


@dataclass(frozen=True, slots=True)
class Known:
    """A measured pair: `there` is from its first node to its second. `age_s` seconds ago, 0 when just now."""

    link: Link
    age_s: float


class LinkMemory:
    """Measured links in one JSON file. What is damaged in it is not there."""

    def __init__(self, path: Path, now_s: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now_s = now_s

    def recall(self, pairs: Iterable[Pair]) -> dict[Pair, Known]:
        """Those of them that were measured within MAX_AGE_S."""
        entries, now_s = self._read(), self._now_s()
        found = {}
        for pair in pairs:
            if (entry := entries.get(" ".join(pair))) is not None and 0 <= now_s - entry[0] <= MAX_AGE_S:
                at_s, round_trip_s, there_decode_s, there_prefill_s, back_decode_s, back_prefill_s = entry
                link = Link(
                    LinkTimes(round_trip_s, there_decode_s, there_prefill_s),
                    LinkTimes(round_trip_s, back_decode_s, back_prefill_s),
                )
                found[pair] = Known(link, now_s - at_s)
        return found

    def remember(self, links: Mapping[Pair, Link]) -> None:
        """Raises UserError when the file cannot be written. Of two commands that remember at once, the last one's table stays."""
        now_s = self._now_s()
        entries = self._read() | {" ".join(pair): [now_s, *_numbers(link)] for pair, link in links.items()}
        newest = dict(sorted(entries.items(), key=lambda entry: -entry[1][0])[:MAX_REMEMBERED])
        write_private(self._path, json.dumps(newest).encode())

    def _read(self) -> dict[str, list[float]]:
        try:
            entries = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return {key: entry for key, entry in entries.items() if _is_entry(entry)} if isinstance(entries, dict) else {}


def _is_entry(value: object) -> bool:
    """Whether it is Unix time and five times in seconds; NaN fails every comparison."""
    return (
        isinstance(value, list)
        and len(value) == 6
        and all(isinstance(number, int | float) and 0 <= number <= MAX_NUMBER for number in value)
    )


def _numbers(link: Link) -> tuple[float, ...]:
    there, back = link.there, link.back
    return (there.round_trip_s, there.decode_s, there.prefill_s, back.decode_s, back.prefill_s)


async def measure_pairs(
    pairs: Iterable[Pair], measure: Measure, device_of: Callable[[str], str], on_done: Callable[[int], None]
) -> dict[Pair, Link | MdiError]:
    """Every pair, in rounds in which no device takes part twice: a busy end would make a link look slow.

    What a pair raised takes the place of its link, and ends nothing else.
    """
    found: dict[Pair, Link | MdiError] = {}
    for pairs_at_once in rounds(pairs, device_of):
        results = await asyncio.gather(*(_tried(measure(pair)) for pair in pairs_at_once))
        found.update(zip(pairs_at_once, results, strict=True))
        on_done(len(found))
    return found


async def _tried(measuring: Coroutine[Any, Any, Link]) -> Link | MdiError:
    try:
        return await measuring
    except MdiError as error:
        return error
