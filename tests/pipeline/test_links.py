"""Measured links are remembered, whatever happened to their file."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from mdi.errors import UserError
from mdi.node.links import LinkTimes
from mdi.pipeline.links import MAX_AGE_S, LinkMemory

PAIR = ("a", "b")
TIMES = LinkTimes(0.001, 0.01)


def test_a_link_is_known_for_an_hour(tmp_path: Path) -> None:
    now_s = 1000.0
    memory = LinkMemory(tmp_path / "links.json", 1, 2, lambda: now_s)
    memory.remember({PAIR: TIMES})
    assert memory.recall(PAIR) == TIMES
    assert LinkMemory(tmp_path / "links.json", 1, 3, lambda: now_s).recall(PAIR) is None
    now_s += MAX_AGE_S + 1
    assert memory.recall(PAIR) is None


@pytest.mark.parametrize(
    "entry", [["x", 1, 2], [None, 1, 2], [[], 1, 2], [1, "x", 2], [1, float("nan"), 2], [1, -1, 2], "abc", 7]
)
def test_a_damaged_entry_is_forgotten_alone(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "links.json"
    path.write_text(json.dumps({"a b 1/2": entry, "a d 1/2": entry, "a c 1/2": [1.0, 0.5, 0.5]}))
    memory = LinkMemory(path, 1, 2, lambda: 1.0)
    assert memory.recall(PAIR) is None
    assert memory.recall(("a", "c")) == LinkTimes(0.5, 0.5)
    memory.remember({PAIR: TIMES})
    assert memory.recall(PAIR) == TIMES


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"links\.json"):
        LinkMemory(tmp_path / "gone" / "links.json", 1, 2).remember({PAIR: TIMES})


def test_two_commands_of_one_home_may_remember_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    together = threading.Barrier(2)

    def write() -> None:
        memory = LinkMemory(tmp_path / "links.json", 1, 2)
        together.wait()
        try:
            for _ in range(50):
                memory.remember({PAIR: TIMES})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert LinkMemory(tmp_path / "links.json", 1, 2).recall(PAIR) == TIMES
    assert [path.name for path in tmp_path.iterdir()] == ["links.json"]
