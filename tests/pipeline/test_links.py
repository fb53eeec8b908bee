from __future__ import annotations

import asyncio
import itertools
import json
import threading
from pathlib import Path

import pytest

from mdi.errors import LinkError, MdiError, UserError
from mdi.node.links import DECODE_BYTES, PREFILL_BYTES, Link, LinkTimes
from mdi.pipeline.links import MAX_AGE_S, MAX_REMEMBERED, Known, LinkMemory, measure_pairs
from mdi.pipeline.matrix import HERE, Matrix, device
from mdi.pipeline.rounds import Pair, pair_of

AB, AC, BC = ("a", "b"), ("a", "c"), ("b", "c")
LINK = Link(LinkTimes(0.002, 0.003, 0.1), LinkTimes(0.002, 0.004, 0.2))


class Clock:
    now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


def test_a_measured_link_is_remembered_with_its_age_for_a_while(tmp_path: Path) -> None:
    clock = Clock()
    memory = LinkMemory(tmp_path / "links.json", clock)
    assert memory.recall([AB]) == {}
    memory.remember({AB: LINK})
    clock.now_s += 60
    memory.remember({AC: LINK})
    again = LinkMemory(tmp_path / "links.json", clock)
    assert again.recall([AB, AC, BC]) == {AB: Known(LINK, 60.0), AC: Known(LINK, 0.0)}
    clock.now_s += MAX_AGE_S - 60
    assert memory.recall([AB, AC]).keys() == {AB, AC}
    clock.now_s += 1
    assert memory.recall([AB, AC]).keys() == {AC}
    clock.now_s -= 7200  # a board without a clock battery starts in the past
    assert memory.recall([AB, AC]) == {}


@pytest.mark.parametrize("text", ["", "[1]", "3", "\xff"])
def test_a_damaged_file_is_an_empty_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "links.json"
    path.write_bytes(text.encode("latin-1"))
    memory = LinkMemory(path, Clock())
    assert memory.recall([AB]) == {}
    memory.remember({AB: LINK})
    assert memory.recall([AB]) == {AB: Known(LINK, 0.0)}


@pytest.mark.parametrize(
    "entry",
    [
        ["x", 1, 2, 3, 4, 5],
        [None, 1, 2, 3, 4, 5],
        [1, 1, "x", 3, 4, 5],
        [1, float("nan"), 2, 3, 4, 5],
        [1, -1, 2, 3, 4, 5],
        [1, 2, 3],
        "abc",
        7,
    ],
)
def test_a_damaged_entry_is_forgotten_alone(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "links.json"
    path.write_text(json.dumps({"a b": entry, "b c": entry, "a c": [1.0, 0.5, 0.6, 0.7, 0.8, 0.9]}))
    memory = LinkMemory(path, lambda: 1.0)
    assert memory.recall([AB, AC]) == {AC: Known(Link(LinkTimes(0.5, 0.6, 0.7), LinkTimes(0.5, 0.8, 0.9)), 0.0)}
    memory.remember({AB: LINK})
    assert memory.recall([AB, AC, BC]).keys() == {AB, AC}


def test_a_memory_has_a_bound(tmp_path: Path) -> None:
    clock = Clock()
    memory = LinkMemory(tmp_path / "links.json", clock)
    memory.remember({(f"{i}", "x"): LINK for i in range(MAX_REMEMBERED)})
    clock.now_s += 1
    memory.remember({AB: LINK})
    assert memory.recall([AB]) == {AB: Known(LINK, 0.0)}
    assert len(json.loads((tmp_path / "links.json").read_text())) == MAX_REMEMBERED


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"links\.json"):
        LinkMemory(tmp_path / "gone" / "links.json").remember({AB: LINK})


def test_two_commands_of_one_home_may_remember_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    together = threading.Barrier(2)

    def write() -> None:
        memory = LinkMemory(tmp_path / "links.json")
        together.wait()
        try:
            for _ in range(50):
                memory.remember({AB: LINK})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert LinkMemory(tmp_path / "links.json").recall([AB])[AB].link == LINK
    assert [path.name for path in tmp_path.iterdir()] == ["links.json"]


def test_frames_of_other_sizes_lie_on_the_lines_between() -> None:
    times = LinkTimes(round_trip_s=0.002, decode_s=0.003, prefill_s=0.103)
    assert times.seconds(0) == pytest.approx(0.001)
    assert times.seconds(DECODE_BYTES // 2) == pytest.approx(0.002)
    assert times.seconds(DECODE_BYTES) == pytest.approx(0.003)
    assert times.seconds((DECODE_BYTES + PREFILL_BYTES) // 2) == pytest.approx(0.053)
    assert times.seconds(PREFILL_BYTES) == pytest.approx(0.103)
    assert times.seconds(2 * PREFILL_BYTES) > 0.2


async def test_no_node_is_measured_twice_at_once_and_failures_end_nothing_else() -> None:
    busy: set[str] = set()
    met: list[Pair] = []
    progress: list[int] = []
    gate = asyncio.Barrier(3)

    async def measure(pair: Pair) -> Link:
        assert not busy & set(pair)
        busy.update(pair)
        met.append(pair)
        await asyncio.wait_for(gate.wait(), 10)  # three pairs of six nodes are measured at the same time
        busy.difference_update(pair)
        if pair == AB:
            raise LinkError("a cannot reach b")
        return LINK

    pairs = [pair_of(a, b) for a, b in itertools.combinations("abcdef", 2)]
    found = await measure_pairs(pairs, measure, str, progress.append)
    assert sorted(met) == sorted(pairs)
    assert progress == [3, 6, 9, 12, 15]
    assert str(found.pop(AB)) == "a cannot reach b"
    assert set(found.values()) == {LINK}


def test_a_matrix_has_both_directions_of_every_pair() -> None:
    pairs: dict[Pair, Known | MdiError] = {AB: Known(LINK, 5.0), AC: Known(LINK, 0.0), BC: LinkError("no route")}
    matrix = Matrix((("b", "Bea"), ("a", "Al"), ("c", "Cy")), pairs)
    assert (matrix.times("a", "b"), matrix.times("b", "a")) == (LINK.there, LINK.back)
    assert matrix.times("c", "b") is None
    assert matrix.problems() == ["Bea and Cy cannot reach each other: no route"]
    rows = matrix.to_json()["links"]
    assert len(rows) == 6
    assert [(row["from_name"], row["to_name"]) for row in rows if "problem" in row] == [("Bea", "Cy"), ("Cy", "Bea")]
    (row,) = (row for row in rows if (row["from"], row["to"]) == ("b", "a"))
    assert (row["prefill_s"], row["age_s"], row["prefill_bytes_per_s"]) == (0.2, 5.0, PREFILL_BYTES / 0.2)


def test_a_node_of_this_device_is_told_by_its_address() -> None:
    assert device(("127.0.0.1",)) == HERE
    assert device(("192.0.2.7", "2001:db8::7")) == "192.0.2.7"
