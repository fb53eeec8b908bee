from __future__ import annotations

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


TEXTS = st.lists(st.text("ab☃", max_size=3), max_size=8)
STOPS = st.lists(st.text("ab☃", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


def cut(stops: tuple[str, ...], pieces: list[str]) -> str:
    """By definition: at the first piece that completes a stop string, the text before the first one in it."""
    for n in range(len(pieces)):
        text = "".join(pieces[: n + 1])
        if found := [text.index(stop) for stop in stops if stop in text]:
            return text[: min(found)]
    return "".join(pieces)


@given(pieces=TEXTS, stops=STOPS)
def test_however_the_text_is_cut_it_ends_before_the_first_stop(pieces: list[str], stops: tuple[str, ...]) -> None:
    assert shown(stops, pieces) == cut(stops, pieces)


@given(pieces=TEXTS, stops=STOPS)
def test_what_is_held_back_is_the_shortest_end_that_may_become_a_stop(pieces: list[str], stops: tuple[str, ...]) -> None:
    stop_filter, text, out = StopFilter(stops), "", ""
    for piece in pieces:
        text, out = text + piece, out + stop_filter.push(piece)
        if stop_filter.stopped:
            break
        begun = [n for n in range(len(text) + 1) if any(stop.startswith(text[n:]) for stop in stops)]
        assert out == text[: begun[0]]


def test_nothing_is_held_back_longer_than_needed() -> None:
    stop_filter = StopFilter(("END",))
    assert [stop_filter.push(piece) for piece in ("xE", "y", "EN", "z")] == ["x", "Ey", "", "ENz"]
