"""How much room there is for packs, and how fast they are written and read."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import InternalError, UserError

PIECE_BYTES = 4 << 20
MOST_BYTES = 64 << 20  # a card wears by what is written: this is once a week
BOX_S = 0.6  # for writing; reading takes no longer
MIN_FREE_SHARE = 4  # nothing is measured on a disk on which this would take more than a quarter of what is left


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Bytes per second of a file that is written with fsync, and read again past the page cache."""

    write_bytes_per_s: float
    read_bytes_per_s: float

    def __post_init__(self) -> None:
        for value in (self.write_bytes_per_s, self.read_bytes_per_s):
            if not (math.isfinite(value) and value > 0):
                raise InternalError(f"measured {value} bytes/s of a disk")


def room(directory: Path) -> tuple[int, int]:
    """(free, all) bytes of the file system that holds `directory`."""
    usage = shutil.disk_usage(directory)
    return usage.free, usage.total


def measure_disk(directory: Path) -> DiskSpeed:
    """Writes up to MOST_BYTES for about a second. Raises UserError when the disk is (nearly) full or cannot be written."""
    try:
        if room(directory)[0] < MIN_FREE_SHARE * MOST_BYTES:
            raise UserError(f"{directory} has hardly any room left", hint="free some space there")
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            return _measure(file.fileno())
    except OSError as error:
        raise UserError(f"{directory} cannot be measured: {error.strerror}", hint="may this user write there?") from None


def _measure(descriptor: int) -> DiskSpeed:
    piece = os.urandom(PIECE_BYTES)  # file systems compress
    written, start_s = 0, time.perf_counter()
    while written < MOST_BYTES and time.perf_counter() - start_s < BOX_S:
        written += os.write(descriptor, piece)
        os.fsync(descriptor)
    write_s = time.perf_counter() - start_s
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    read, start_s = 0, time.perf_counter()
    while data := os.read(descriptor, PIECE_BYTES):
        read += len(data)
    read_s = time.perf_counter() - start_s
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
    return DiskSpeed(written / write_s, read / read_s)
