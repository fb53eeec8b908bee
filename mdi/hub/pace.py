"""Trying again: how often, and how long to wait before. Pure but for `sleep`, which is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mdi.errors import HubError

T = TypeVar("T")

FIRST_TRIES = 3  # of the first question: without a network the user should hear of it within seconds
TRIES = 9  # in a row without a byte: 2 min in all, as long as a router takes to start again
LONGEST_PAUSE_S = 30.0
LONGEST_ASKED_PAUSE_S = 330.0  # the hub counts requests in windows of 5 min


class Interruption(Exception):
    """It did not work this time, and may the next. `asked_pause_s`: how long the server wants to be left alone."""

    def __init__(self, reason: str, asked_pause_s: float | None = None, hint: str | None = None) -> None:
        super().__init__(reason)
        self.asked_pause_s = asked_pause_s
        self.hint = hint


class Pace:
    """Counts failures in a row and waits after each: 1, 2, 4, ... s, or as long as the server asks for."""

    def __init__(self, sleep: Callable[[float], None], on_wait: Callable[[str], None], tries: int) -> None:
        """`on_wait` is told in words that it waits, for how long, and why."""
        self._sleep = sleep
        self._on_wait = on_wait
        self._tries = tries
        self._failures = 0

    def progressed(self) -> None:
        """Something came: what failed before no longer counts."""
        self._failures = 0

    def wait(self, cut: Interruption) -> None:
        """Raises HubError when it has failed too often, or would have to wait for too long."""
        self._failures += 1
        pause_s = min(2.0 ** (self._failures - 1), LONGEST_PAUSE_S) if cut.asked_pause_s is None else cut.asked_pause_s
        if pause_s > LONGEST_ASKED_PAUSE_S:
            raise HubError(f"{cut}, and asks to be left alone for {pause_s / 60:.0f} minutes", hint=cut.hint) from cut
        if self._failures >= self._tries:
            raise HubError(str(cut), hint=cut.hint) from cut
        self._on_wait(f"{cut}; next try in {pause_s:.0f} s")
        self._sleep(pause_s)

    def persist(self, work: Callable[[], T]) -> T:
        """`work`, again and again until it is not interrupted. Raises HubError as `wait` does."""
        while True:
            try:
                result = work()
            except Interruption as cut:
                self.wait(cut)
            else:
                self.progressed()
                return result
