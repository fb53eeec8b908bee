"""The matrix of links as text. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mdi.cli.render import duration
from mdi.errors import MdiError
from mdi.node.links import DECODE_BYTES, PREFILL_BYTES, LinkTimes
from mdi.plan.explain import table
from mdi.plan.text import binary_bytes, counted

if TYPE_CHECKING:
    from mdi.pipeline.matrix import Matrix

NO_LINK = "—"
JUST_NOW_S = 2.0


def links_text(matrix: Matrix) -> str:
    """Three tables, a row for each sender and a column for each receiver, and how old the oldest figure is."""
    if len(matrix.nodes) < 2:
        return "No other node of this cluster answers; `mdi nodes` says who is here."

    def throughput(seconds: Callable[[LinkTimes], float], n_bytes: int) -> Callable[[LinkTimes], str]:
        return lambda times: f"{8 * n_bytes / seconds(times) / 1e6:.3g}"

    decode, prefill = binary_bytes(DECODE_BYTES), binary_bytes(PREFILL_BYTES)
    tables = (
        ("Round trip, ms", lambda times: f"{times.round_trip_s * 1e3:.3g}"),
        (f"A decode frame ({decode}), Mbit/s one way", throughput(lambda times: times.decode_s, DECODE_BYTES)),
        (f"A prefill frame ({prefill}), Mbit/s one way", throughput(lambda times: times.prefill_s, PREFILL_BYTES)),
    )
    parts = [f"{title}\n{_table(matrix, title_cell)}" for title, title_cell in tables]
    return "\n\n".join([*parts, _ages(matrix)])


def _table(matrix: Matrix, cell: Callable[[LinkTimes], str]) -> str:
    def shown(sender: str, receiver: str) -> str:
        times = None if sender == receiver else matrix.times(sender, receiver)
        return NO_LINK if times is None and sender != receiver else "" if times is None else cell(times)

    rows = [(name, *(shown(sender, receiver) for receiver, _ in matrix.nodes)) for sender, name in matrix.nodes]
    return table(("from \\ to", *(name for _, name in matrix.nodes)), rows)


def _ages(matrix: Matrix) -> str:
    ages = [found.age_s for found in matrix.pairs.values() if not isinstance(found, MdiError)]
    oldest_s = max(ages, default=0.0)
    pairs = counted(len(ages), "pair")
    when = "just now" if oldest_s < JUST_NOW_S else f"at most {duration(oldest_s)} ago; --refresh measures again"
    return f"{pairs} measured {when}."
