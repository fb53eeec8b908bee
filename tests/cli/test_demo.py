from __future__ import annotations

from mdi.cli.demo import NODES, Question
from mdi.cluster.home import Home

from .programs import mdi


def test_an_answer_counts_when_the_expected_word_is_in_it_whole() -> None:
    assert Question("?", "Paris").is_answered_by("It is paris.")
    assert not Question("?", "12").is_answered_by("7 + 5 = 112.")
    assert not Question("?", "c-a-t").is_answered_by("s-c-a-t.")


def test_the_demo_answers_over_three_real_nodes(home: Home) -> None:
    done = mdi(home, "demo", "--no-input")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(NODES)} of {len(NODES)} nodes did work" in done.stdout
    assert "✗" not in done.stdout
