"""For all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell starts background jobs deaf to Ctrl-C, and their children inherit that: tests of Ctrl-C would wait for nothing."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
