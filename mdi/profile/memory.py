"""How much memory this process could still take, and sizes as people write them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import psutil

from mdi.engine.backend import MPS, ONNX, Backend
from mdi.errors import UserError

# Left alone on every device: 100 MiB for the daemon to grow (a frame of 1 MiB lives in a dozen copies at most; the activations of
# 128 tokens at d_ffn 28672 are 42 MiB), and 150 MiB of page cache, without which a small board reads its programs again and
# again from the card, and appears to hang.
HEADROOM_BYTES = 256 << 20

# glibc raises the size from which a block has pages of its own with each such block that is freed, up to 32 MiB. Then weights and
# activations lie on its heaps, and what is freed between others stays: 74 MiB after a stage of 240 MiB, against 30 MiB with this bound,
# and 20 MiB more at the peak of the next. Below it: the logits of 128,000 tokens, which would cost page faults with every token.
OWN_PAGES_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3  # malloc.h

MAX_BYTES = 1 << 62  # no device has more, and 64-bit fields on the wire hold it
MAX_SIZE_TEXT = 32  # characters: a size has at most 19 digits
UNITS = "KMGT"
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?b)?|b)?\s*", re.IGNORECASE | re.ASCII)


def available_bytes(root: Path = Path("/")) -> int:
    """What this process could still take without swapping: never more than its control groups allow.

    `root` is where `proc` and `sys` are mounted. Devices without control groups answer with what the system has available.
    """
    return max(0, min(psutil.virtual_memory().available, *_cgroup_rooms(root), MAX_BYTES))


def backend_available_bytes(backend: Backend) -> int:
    """What a stage could still take where the backend keeps its weights: on the accelerator, or in this device's memory.

    An Apple GPU has no memory of its own: both bounds hold there.
    """
    free = backend.free_bytes()
    if free is None:
        return available_bytes()
    return min(free, available_bytes()) if backend.device == MPS else free


def backend_total_bytes(backend: Backend) -> int:
    """All memory of the accelerator, or of this device."""
    total = backend.total_bytes()
    return psutil.virtual_memory().total if total is None else total


def offered_bytes(max_memory: int | None, in_use: int, backend: Backend = ONNX, *, promised: int = 0) -> int:
    """What a new stage may take now, in bytes.

    `max_memory` is what the owner allows for all stages together (None: no limit), and `in_use` what loaded stages hold of it;
    `promised` bytes of that they have not taken from the system yet. HEADROOM_BYTES stay free however generous the owner is.
    """
    room = backend_available_bytes(backend) - HEADROOM_BYTES - promised
    if max_memory is not None:
        room = min(room, max_memory - in_use)
    return max(0, room)


def give_back_freed_memory() -> None:
    """Returns what this process freed in small blocks to the system, where the C library keeps it (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_large_blocks_apart() -> None:
    """From now on every block from OWN_PAGES_BYTES on returns to the system the moment it is freed, where the C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, OWN_PAGES_BYTES)


def parse_bytes(text: str) -> int:
    """`2GiB`, `2G` and `2g` are 2 * 2**30 bytes, `2GB` is 2 * 10**9, `2000` and `2000B` are bytes. Fractions round down.

    Raises UserError for anything else. A bare letter is binary, as for systemd and Docker.
    """
    match = _SIZE.fullmatch(text) if len(text) <= MAX_SIZE_TEXT else None
    if match is None:
        raise UserError(f"{text[:MAX_SIZE_TEXT]!r} is not an amount of memory", hint="write it like 2GiB, 800MB or 1.5G")
    number, letter, suffix = match.groups()
    power = UNITS.index(letter.upper()) + 1 if letter else 0
    base = 1000 if (suffix or "").lower() == "b" else 1024
    n_bytes = int(Decimal(number) * base**power)
    if n_bytes > MAX_BYTES:
        raise UserError(f"{text!r} is more memory than any device has", hint="write it like 2GiB, 800MB or 1.5G")
    return n_bytes


def format_bytes(n_bytes: int) -> str:
    """At least two significant digits in the largest binary unit, such as `1.5 GiB`; `parse_bytes` reads it back within 5 %."""
    value, power = float(n_bytes), 0
    while value >= 1023.5 and power < len(UNITS):
        value, power = value / 1024, power + 1
    unit = f"{UNITS[power - 1]}iB" if power else "B"
    digits = f"{value:.0f}" if value >= 99.95 or power == 0 else f"{value:.1f}".removesuffix(".0")
    return f"{digits} {unit}"


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Limit minus usage of every control group above this process, of either version. Files that are missing limit nothing."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in memberships:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            yield from _rooms(root / "sys/fs/cgroup", group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            yield from _rooms(mount, group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _rooms(mount: Path, group: str, limit_name: str, usage_name: str, reclaimable_name: str) -> Iterator[int]:
    """The group itself and its ancestors up to the mount: in a container the named group may not be visible, its root is."""
    path = mount / group.lstrip("/")
    for directory in (path, *path.parents):
        limit = _number(directory / limit_name)
        usage = _number(directory / usage_name)
        if limit is not None and usage is not None:
            # The kernel drops file pages not used lately before it refuses memory: they count as usage, but are free to take.
            yield limit - max(0, usage - _statistic(directory / "memory.stat", reclaimable_name))
        if directory == mount:
            return


def _number(path: Path) -> int | None:
    """None for a missing file, and for `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _statistic(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
