"""Weights in huge pages. A token reads every weight once, and each page of 4 KiB costs a look-up in the page tables.

`python -m tools.bench --parts bandwidth` with and without: decoding is 1.1 to 1.2 times as fast. Linux alone; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MADV_COLLAPSE = 25  # linux/mman.h, since Linux 6.1: older kernels refuse it
HUGE_PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
MAPS = Path("/proc/self/maps")
# Of one call to the kernel. It gives up at the first page for which it finds no room: of 3.3 GiB of weights, beside 16 GiB of page cache,
# 1.9 GiB moved in runs of 8 MiB, and 1.1 GiB in runs of 64 MiB.
MAX_RUN_BYTES = 8 << 20
# The kernel copies 0.5 to 3 GB in a second: where memory is short or in pieces, it looks for room first. What is not done when a start has
# waited so long goes on beside the first answers. The few blocks that a device's speed is measured with are done by then.
PATIENCE_S = 0.5
DEADLINE_S = 60.0  # for the rest: then there is no room, and looking for it costs more than it brings
NICE = 10  # of the thread that does the rest: what computes gets the cores, yet the kernel's locks are not held for long
MIN_BYTES = (
    8 << 20
)  # of weights: fewer lie in the processor's cache, and looking through the process's memory takes a millisecond or more


@dataclass(frozen=True, slots=True)
class Region:
    """Addresses `[start, stop)`."""

    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start

    def within(self, page: int) -> Region:
        """The whole pages of `page` bytes that lie in it; empty when there are none."""
        start = -(-self.start // page) * page
        return Region(start, max(start, self.stop // page * page))


def use_huge_pages(weight_bytes: int) -> int:
    """Moves what this process holds in memory of its own into huge pages, and returns how many bytes that are so far.

    `weight_bytes` were just loaded; below MIN_BYTES nothing happens. Only full pages move: memory does not grow, and KV stays as it is
    (see `onnx_engine.untouched`). What takes longer than PATIENCE_S is left to a thread, until DEADLINE_S. It is asked, not required:
    where the kernel has no huge page to give or is too old, the rest stays in small pages.
    """
    page = huge_page_bytes()
    if page is None or weight_bytes < MIN_BYTES:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    runs = full_memory(libc, page)
    moved, is_done = move(libc, runs, PATIENCE_S)
    if not is_done:
        threading.Thread(target=_move_rest, args=(libc, runs), name="huge pages", daemon=True).start()
    return moved


def _move_rest(libc: ctypes.CDLL, runs: Iterator[Region]) -> None:
    """What is freed or taken anew in the meantime does no harm: the kernel refuses the one, and moves the other."""
    thread = threading.get_native_id()  # on Linux a thread has a priority of its own, and may lower it
    os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))
    move(libc, runs, DEADLINE_S)


def move(libc: ctypes.CDLL, runs: Iterator[Region], seconds: float) -> tuple[int, bool]:
    """Moves runs until the time is over: how many bytes moved, and whether that were all runs. The others can still be taken."""
    deadline, moved = time.monotonic() + seconds, 0
    for run in runs:
        if libc.madvise(ctypes.c_void_p(run.start), ctypes.c_size_t(run.n_bytes), MADV_COLLAPSE) == 0:
            moved += run.n_bytes
        if time.monotonic() > deadline:
            return moved, False
    return moved, True


def full_memory(libc: ctypes.CDLL, page: int) -> Iterator[Region]:
    """Runs of huge pages that this process has filled with small ones."""
    for region in (each.within(page) for each in anonymous_regions(MAPS.read_text())):
        yield from full_runs(resident(libc, region), region.start, page)


def huge_page_bytes() -> int | None:
    """None where the kernel has none."""
    try:
        return int(HUGE_PAGE_SIZE.read_text())
    except (OSError, ValueError):
        return None


def anonymous_regions(maps: str) -> Iterator[Region]:
    """Of /proc/PID/maps, what is private, writable and of no file: the heap among it, stacks of the main thread not."""
    for line in maps.splitlines():
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions.startswith("rw") and permissions.endswith("p") and inode == "0" and name in ([], ["[heap]"]):
            start, stop = (int(address, 16) for address in addresses.split("-"))
            yield Region(start, stop)


def resident(libc: ctypes.CDLL, region: Region) -> NDArray[np.bool_]:
    """Whether each small page of the region is in memory; all False when the region is gone."""
    pages = np.zeros(region.n_bytes // mmap.PAGESIZE, np.uint8)
    if pages.size and libc.mincore(
        ctypes.c_void_p(region.start), ctypes.c_size_t(region.n_bytes), ctypes.c_void_p(pages.ctypes.data)
    ):
        return np.zeros(pages.size, np.bool_)
    return (pages & 1).astype(np.bool_)


def full_runs(small: NDArray[np.bool_], start: int, page: int) -> Iterator[Region]:
    """Neighbouring huge pages, together at most MAX_RUN_BYTES, all of whose small pages are in memory."""
    full: NDArray[np.bool_] = np.all(small.reshape(-1, page // mmap.PAGESIZE), axis=1, keepdims=True)[:, 0]
    at, most = 0, max(1, MAX_RUN_BYTES // page)
    while at < len(full):
        count = 0
        while at + count < len(full) and full[at + count] and count < most:
            count += 1
        if count:
            yield Region(start + at * page, start + (at + count) * page)
        at += max(1, count)
