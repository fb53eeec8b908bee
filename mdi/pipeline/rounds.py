"""In which order pairs of nodes are measured: rounds in which no device takes part twice. Pure.

All pairs of n nodes need n - 1 rounds (n when n is odd), which is the least: the schedule of a round-robin tournament.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Pair = tuple[str, str]  # node ids, the smaller one first: a measurement is of both directions

MOST_AT_ONCE = 8  # pairs: their prefill frames together take 8 MiB of a home router's or switch's attention


def pair_of(a: str, b: str) -> Pair:
    return (a, b) if a < b else (b, a)


def rounds(pairs: Iterable[Pair], device_of: Callable[[str], str], most: int = MOST_AT_ONCE) -> list[list[Pair]]:
    """Each pair once. `device_of` a node: nodes of one device share its network and processor, so they count as one end.

    Each pair goes into the first round that has room for it; in the order of a tournament that is the tournament, and what is
    measured only in part (a node that joined) stays dense.
    """
    found: list[list[Pair]] = []
    busy: list[set[str]] = []
    for pair in tournament_order(set(pairs)):
        ends = {device_of(pair[0]), device_of(pair[1])}
        for members, taken in zip(found, busy, strict=True):
            if len(members) < most and not ends & taken:
                members.append(pair)
                taken |= ends
                break
        else:
            found.append([pair])
            busy.append(set(ends))
    return found


def tournament_order(pairs: set[Pair]) -> list[Pair]:
    """By the circle method: one node stands still, the others go round a table, and who sit opposite are a pair."""
    nodes: Sequence[str | None] = sorted({node for pair in pairs for node in pair})
    if len(nodes) % 2:
        nodes = [*nodes, None]  # whoever sits opposite rests
    order: list[Pair] = []
    for turn in range(len(nodes) - 1):
        seats = [nodes[0], *nodes[1 + turn :], *nodes[1 : 1 + turn]]
        for a, b in zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True):
            if a is not None and b is not None and pair_of(a, b) in pairs:
                order.append(pair_of(a, b))
    return order
