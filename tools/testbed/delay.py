"""A cable on which every frame is late: two TAP devices in two network namespaces, and a queue for each direction.

    python delay.py NAMESPACE DEVICE NAMESPACE DEVICE DELAY_MS JITTER_MS

Prints one line when both devices are there; they are gone when it ends. Ethernet frames, so multicast and everything else passes.
For kernels without netem. It costs about 20 microseconds of CPU for each frame, so it is for links up to some 300 Mbit/s.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # run by its path, so that nothing else is imported
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tools.testbed.enter import set_network_namespace

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
MAX_FRAME_BYTES = 1 << 16
MAX_FRAMES = 20_000  # waiting in one direction: 30 MB, 2 s of 120 Mbit/s; what comes on top is lost, as in any router
AT_ONCE = 64  # frames taken from one side before the other gets its turn
SEED = 7  # the same jitter in every run


@dataclass(slots=True)
class DelayLine:
    """Frames in the order in which they came, each with the time at which it is due. Pure: the caller has the clock.

    Each is late by `delay_s` and a random part of `jitter_s`, but never overtakes the one before.
    """

    delay_s: float
    jitter_s: float = 0.0
    max_frames: int = MAX_FRAMES
    random: random.Random = field(default_factory=lambda: random.Random(SEED))
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    def push(self, now_s: float, frame: bytes) -> bool:
        """False when the queue is full and the frame is lost."""
        if len(self.waiting) >= self.max_frames:
            return False
        due_s = now_s + self.delay_s + self.jitter_s * self.random.random()
        if self.waiting:
            due_s = max(due_s, self.waiting[-1][0])
        self.waiting.append((due_s, frame))
        return True

    def due(self, now_s: float) -> bytes | None:
        """The next frame if its time has come; call until None."""
        return self.waiting.popleft()[1] if self.waiting and self.waiting[0][0] <= now_s else None

    def wait_s(self, now_s: float) -> float | None:
        """Until the next frame is due; None when none waits."""
        return max(0.0, self.waiting[0][0] - now_s) if self.waiting else None


def open_tap(namespace: str, device: str) -> int:
    """Makes the device and returns the descriptor that carries its frames. The process is in that namespace afterwards."""
    set_network_namespace(namespace)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def carry(a: int, b: int, lines: Sequence[DelayLine]) -> None:
    """For ever: `lines[0]` from `a` to `b`, `lines[1]` back."""
    ways = ((a, b, lines[0]), (b, a, lines[1]))
    while True:
        waits = [wait for *_, line in ways if (wait := line.wait_s(time.monotonic())) is not None]
        select.select((a, b), (), (), min(waits, default=None))
        for source, target, line in ways:
            _take(source, line)
            while (frame := line.due(time.monotonic())) is not None:
                with suppress(OSError):  # a device that is down, or whose queue is full, loses frames
                    os.write(target, frame)


def _take(source: int, line: DelayLine) -> None:
    for _ in range(AT_ONCE):
        try:
            frame = os.read(source, MAX_FRAME_BYTES)
        except (BlockingIOError, OSError):  # nothing more, or the device is not up yet
            return
        line.push(time.monotonic(), frame)


def main(arguments: Sequence[str]) -> None:
    namespace, device, far_namespace, far_device, delay_ms, jitter_ms = arguments
    ends = open_tap(namespace, device), open_tap(far_namespace, far_device)
    lines = [DelayLine(float(delay_ms) / 1e3, float(jitter_ms) / 1e3) for _ in ends]
    print("ready", flush=True)
    carry(*ends, lines)


if __name__ == "__main__":
    main(sys.argv[1:])
