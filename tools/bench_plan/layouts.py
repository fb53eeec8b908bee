"""Which blocks lie on which node, as a benchmark asks for them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from mdi.errors import UserError
from mdi.plan.plan import BlockRange, Plan
from mdi.plan.wishes import Pin, Wishes


@dataclass(frozen=True, slots=True)
class Layout:
    """Nodes by name in ring order with their blocks, the starter first; it alone may have none."""

    parts: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.parts]
        if not names or len(set(names)) < len(names):
            raise UserError(f"{names} is no ring of different nodes", hint="name each node once, the starter first")
        if self.parts[0][1] < 0 or any(count < 1 for _, count in self.parts[1:]) or self.n_blocks < 1:
            raise UserError(f"{self.text} gives a node no block", hint="leave that node out; only the starter may have none")

    @classmethod
    def of(cls, plan: Plan) -> Layout:
        return cls(tuple((stage.name, len(stage.blocks)) for stage in plan.stages))

    @classmethod
    def from_json(cls, parts: Sequence[Sequence[object]]) -> Layout:
        return cls(tuple((str(name), int(str(count))) for name, count in parts))

    @property
    def n_blocks(self) -> int:
        return sum(count for _, count in self.parts)

    @property
    def text(self) -> str:
        """desk 9, laptop 7"""
        return ", ".join(f"{name} {count}" for name, count in self.parts)

    def wishes(self) -> Wishes:
        """Every block is pinned, so no other plan is possible: `mdi run --pin desk=0-8 --pin laptop=9-15`."""
        pins, start = [], 0
        for name, count in self.parts:
            if count:
                pins.append(Pin(name, BlockRange(start, start + count)))
            start += count
        starter, own = self.parts[0]
        return Wishes(tuple(pins), () if own else (starter,))


def all_layouts(n_blocks: int, limits: Mapping[str, int]) -> Iterator[Layout]:
    """Every ring that the planner may choose from: all sets of workers in all orders, all counts within `limits`.

    The first node of `limits` is the starter, which keeps a block if it can hold one.
    """
    starter, *workers = limits
    least = min(1, limits[starter])
    for n_workers in range(len(workers) + 1):
        for chosen in permutations(workers, n_workers):
            for own in range(least, min(limits[starter], n_blocks) + 1):
                for counts in _compositions(n_blocks - own, [limits[name] for name in chosen]):
                    yield Layout(((starter, own), *zip(chosen, counts, strict=True)))


def _compositions(total: int, limits: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as a sum with one part of at least 1 for each limit, and at most that."""
    if not limits:
        if total == 0:
            yield ()
        return
    first, *rest = limits
    for count in range(1, min(first, total - len(rest)) + 1):
        for others in _compositions(total - count, rest):
            yield (count, *others)
