from __future__ import annotations

import pytest

from mdi.cli.progress import quiet, shown
from mdi.pipeline.api import Progress


def test_without_a_terminal_a_finished_phase_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with shown() as on_progress:
        for done in (0, 1, 2, 3, 3):
            on_progress(Progress("a", "packing demo", done, 3))
        on_progress(Progress("b", "never done", 1, 2))
    on_progress(Progress("c", "replayed 12 tokens", 1, 1))
    assert capsys.readouterr() == ("", "packing demo\nreplayed 12 tokens\n")


def test_a_phase_that_begins_again_is_told_again(capsys: pytest.CaptureFixture[str]) -> None:
    with shown() as on_progress:
        for done in (0, 1, 0, 1):
            on_progress(Progress("a", "loading", done, 1))
    assert capsys.readouterr().err == "loading\nloading\n"


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    quiet(Progress("a", "packing", 1, 1))
    assert capsys.readouterr() == ("", "")
