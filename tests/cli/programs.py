"""Real `mdi` processes: over pipes, and at a terminal of their own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdi.cluster.home import Home

TIMEOUT_S = 60.0
MDI = (sys.executable, "-m", "mdi.cli.app")
ROOT = Path(__file__).parents[2]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\x1b\][^\x07]*\x07")


def environment(home: Home) -> dict[str, str]:
    return {**os.environ, "MDI_HOME": str(home.path), "PYTHONPATH": str(ROOT), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}


def mdi(home: Home, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs to its end."""
    command = [*MDI, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(home))


@contextmanager
def started(home: Home, *arguments: str, stdin: int | None = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """Runs beside the test; it is killed if the test leaves it running."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*MDI, *arguments], stdin=stdin, stdout=pipe, stderr=pipe, text=True, env=environment(home)
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class Terminal:
    """A process that believes to be at a terminal; `screen` is all it ever wrote, without escape sequences."""

    def __init__(self, home: Home, *arguments: str) -> None:
        self._keyboard, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.process = subprocess.Popen(
            [*MDI, *arguments],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env=environment(home),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(inside)
        self._written = b""

    @property
    def screen(self) -> str:
        return ESCAPES.sub("", self._written.decode(errors="replace"))

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def wait_for(self, pattern: str, after: int = 0) -> int:
        """Until the screen holds `pattern` beyond position `after`; returns where it ends there."""
        deadline = time.monotonic() + TIMEOUT_S
        while (found := re.compile(pattern).search(self.screen, after)) is None:
            ready, _, _ = select.select([self._keyboard], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come; the screen shows:\n{self.screen}"
            try:
                self._written += os.read(self._keyboard, 1 << 16)
            except OSError:
                raise AssertionError(f"it ended before {pattern!r} came; the screen shows:\n{self.screen}") from None
        return found.end()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keyboard)
