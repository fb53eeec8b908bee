"""Calls in the text of an answer, however it is cut into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.serve.tools import CallFinder, Way

NAMES = frozenset(("weather", "time"))
OSLO = '{"name": "weather", "arguments": {"city": "Oslo"}}'
NOW = '{"name": "time", "arguments": {}}'

CASES = [
    (Way.TAGGED, f"Let me see.\n<tool_call>\n{OSLO}\n</tool_call>", "Let me see.\n", ["weather"]),
    (Way.TAGGED, f"<tool_call>{OSLO}</tool_call>\n<tool_call>{NOW}</tool_call>", "", ["weather", "time"]),
    (Way.TAGGED, f"<tool_call>{OSLO}", "", ["weather"]),  # the end tag is a stop token of some models
    (Way.TAGGED, "a < b, and <tool", "a < b, and <tool", []),
    (Way.TAGGED, "<tool_call>not JSON</tool_call> goes on", "<tool_call>not JSON</tool_call> goes on", []),
    (
        Way.TAGGED,
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        [],
    ),
    (Way.TAGGED, '<tool_call>{"name": "weath', '<tool_call>{"name": "weath', []),
    (Way.LISTED, f"[TOOL_CALLS][{OSLO}, {NOW}]", "", ["weather", "time"]),
    (Way.LISTED, "[TOOL_CALLS] or not", "[TOOL_CALLS] or not", []),
    (Way.BARE, '{"name": "weather", "parameters": {"city": "Oslo"}}', "", ["weather"]),
    (Way.BARE, f"\n {OSLO}", "", ["weather"]),
    (Way.BARE, '{"city": "Oslo"}', '{"city": "Oslo"}', []),
    (Way.BARE, f"I would say {OSLO}", f"I would say {OSLO}", []),
    (Way.BARE, "", "", []),
    (Way.BARE, "{" * 5000, "{" * 5000, []),
]


def read(way: Way, pieces: list[str]) -> tuple[str, list[str], list[str]]:
    finder = CallFinder(way, NAMES)
    found = [*(finder.push(piece) for piece in pieces), finder.finish()]
    calls = [call for each in found for call in each.calls]
    assert len({call.call_id for call in calls}) == len(calls)
    return "".join(each.text for each in found), [call.name for call in calls], [call.arguments for call in calls]


@pytest.mark.parametrize(("way", "text", "shown", "names"), CASES)
def test_calls_are_found_and_the_rest_is_text(way: Way, text: str, shown: str, names: list[str]) -> None:
    found, called, arguments = read(way, [text])
    assert (found, called) == (shown, names)
    if called and "Oslo" in text:
        assert json.loads(arguments[0]) == {"city": "Oslo"}


@given(st.sampled_from(CASES[:-1]), st.data())
def test_pieces_give_what_the_whole_gives(case: tuple[Way, str, str, list[str]], data: st.DataObject) -> None:
    way, text, shown, names = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found, called, _ = read(way, pieces)
    assert (found.strip(), called) == (shown.strip(), names)


def test_text_is_not_held_back_for_long() -> None:
    finder = CallFinder(Way.TAGGED, NAMES)
    assert finder.push("The answer is ").text == "The answer is "
    assert finder.push("a <").text == "a "
    assert finder.push(" b").text == "< b"


def test_each_family_has_its_way() -> None:
    assert Way.of("... <tool_call> ...") is Way.TAGGED
    assert Way.of("... [TOOL_CALLS] ...") is Way.LISTED
    assert Way.of('... {"name": function name, "parameters": ...') is Way.BARE
