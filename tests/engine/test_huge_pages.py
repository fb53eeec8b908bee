"""Weights move into huge pages, and nothing else does: memory neither grows nor changes."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mdi.engine.huge_pages import (
    DEADLINE_S,
    MAX_RUN_BYTES,
    Region,
    anonymous_regions,
    full_runs,
    huge_page_bytes,
    use_huge_pages,
)
from mdi.engine.onnx_engine import untouched

PAGE = 2 << 20
SMALL = PAGE // mmap.PAGESIZE
MAPS = """\
00400000-00500000 rw-p 00000000 fe:00 1234                       /usr/bin/python3.11
55d000000000-55d000400000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
7f0000800000-7f0000900000 r--p 00000000 00:00 0
7f0000900000-7f0000a00000 rw-s 00000000 00:05 77                         /dev/zero (deleted)
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_private_writable_memory_without_a_file_counts() -> None:
    assert list(anonymous_regions(MAPS)) == [
        Region(0x55D000000000, 0x55D000400000),
        Region(0x7F0000000000, 0x7F0000800000),
    ]


def test_a_region_holds_the_whole_pages_within_it() -> None:
    assert Region(PAGE + 1, 4 * PAGE + 5).within(PAGE) == Region(2 * PAGE, 4 * PAGE)
    assert Region(PAGE + 1, 2 * PAGE - 1).within(PAGE).n_bytes == 0


def test_a_huge_page_with_a_hole_stays_as_it_is() -> None:
    there = np.ones(5 * SMALL, np.bool_)
    there[2 * SMALL + 7] = False
    assert list(full_runs(there, 0, PAGE)) == [Region(0, 2 * PAGE), Region(3 * PAGE, 5 * PAGE)]
    assert list(full_runs(np.zeros(0, np.bool_), 0, PAGE)) == []


def test_long_runs_come_in_parts() -> None:
    there = np.ones((MAX_RUN_BYTES // PAGE + 3) * SMALL, np.bool_)
    assert [run.n_bytes for run in full_runs(there, PAGE, PAGE)] == [MAX_RUN_BYTES, 3 * PAGE]


def huge_bytes(values: np.ndarray) -> int:
    """`AnonHugePages` of the mapping in which the middle of the array lies."""
    address, inside = values.ctypes.data + values.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0] and not head[0].endswith(":"):
            start, stop = (int(part, 16) for part in head[0].split("-"))
            inside = start <= address < stop
        elif inside and head[0] == "AnonHugePages:":
            return int(head[1]) << 10
    return 0


needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux") or huge_page_bytes() != PAGE, reason="no huge pages")


@needs_linux
def test_full_memory_moves_and_keeps_its_values() -> None:
    values = np.arange((16 << 20) // 8, dtype=np.int64)
    moved = use_huge_pages(values.nbytes)
    if moved == 0:
        pytest.skip("this kernel gives no huge pages")
    assert huge_bytes(values) >= 8 << 20
    assert np.array_equal(values, np.arange(len(values)))


@needs_linux
def test_what_takes_long_is_left_to_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # numpy would ask for huge pages itself
    values = np.frombuffer(memory, np.int64)
    values[:] = np.arange(len(values))
    assert huge_bytes(values) == 0
    monkeypatch.setattr("mdi.engine.huge_pages.PATIENCE_S", -1.0)
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    if use_huge_pages(values.nbytes) == 0:
        pytest.skip("this kernel gives no huge pages")
    for thread in threading.enumerate():
        if thread.name == "huge pages":
            thread.join(DEADLINE_S)
    assert huge_bytes(values) >= 32 << 20
    assert np.array_equal(values, np.arange(len(values)))
    assert os.getpriority(os.PRIO_PROCESS, 0) == priority


@needs_linux
def test_kv_that_was_not_written_takes_no_memory() -> None:
    kv = untouched((4 << 20,))
    kv[: PAGE // 4] = 1
    use_huge_pages(kv.nbytes)
    assert huge_bytes(kv) == 0


def test_without_huge_pages_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mdi.engine.huge_pages.HUGE_PAGE_SIZE", tmp_path / "none")
    assert use_huge_pages(1 << 30) == 0


@needs_linux
def test_a_model_that_fits_the_cache_is_left_alone() -> None:
    values = np.arange((16 << 20) // 8, dtype=np.int64)  # there is something to move
    assert use_huge_pages(1 << 20) == 0
    assert values[-1] == len(values) - 1
