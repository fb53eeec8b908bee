from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.pipeline.answer import StopFilter


def shown(stops: tuple[str, ...], pieces: list[str]) -> str:
    stop_filter = StopFilter(stops)
    return "".join(stop_filter.push(piece) for piece in pieces) + stop_filter.flush()


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        ((), ["a", "b"], "ab"),
        (("END",), ["abc E", "N", "D def"], "abc "),
        (("END",), ["abc E", "N", "X"], "abc ENX"),
        (("aab",), ["aa", "ab", "c"], "a"),
        (("\n\n", "User:"), ["one\nUs", "er: two"], "one\n"),
        (("b", "abc"), ["a", "b", "c"], "a"),
    ],
)
def test_stop_strings_across_tokens(stops: tuple[str, ...], pieces: list[str], expected: str) -> None:
    assert shown(stops, pieces) == expected


@given(st.lists(st.text("ab", max_size=3), max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_however_the_text_is_cut_it_ends_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    found = shown(tuple(stops), pieces)
    assert text.startswith(found)
    assert not any(re.search(re.escape(stop), found) for stop in stops)
    if not any(stop in text for stop in stops):
        assert found == text


def test_nothing_is_held_back_longer_than_needed() -> None:
    stop_filter = StopFilter(("END",))
    assert [stop_filter.push(piece) for piece in ("xE", "y", "EN", "z")] == ["x", "Ey", "", "ENz"]
