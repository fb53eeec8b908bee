from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.cli.commands import FENCE, MEANING, Call, Command, Say, help_text, is_complete, is_last, opens_block, parse
from mdi.errors import UserError

lines = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30)


@given(lines)
def test_an_ordinary_line_is_said_as_it_was_typed(line: str) -> None:
    if line.strip() and not line.endswith("\\") and not line.startswith("/") and not line.strip().startswith(FENCE):
        assert is_complete(line)
        assert parse(line) == Say(line.strip())


words = st.text("ab /\\", min_size=1, max_size=8).map(lambda text: f"x{text}x")


@given(st.lists(words | st.just(""), min_size=1, max_size=5), words)
def test_a_fenced_block_is_complete_at_its_end_and_not_before(block: list[str], last: str) -> None:
    typed = [FENCE, *block, last]
    for n in range(1, len(typed) + 1):
        assert not is_complete("\n".join(typed[:n]))
    whole = "\n".join([*typed, FENCE])
    assert is_complete(whole)
    assert parse(whole) == Say("\n".join([*block, last]).strip("\n"))


@given(st.lists(st.text(' x"\\', max_size=5) | st.sampled_from([FENCE, "", " "]), min_size=1, max_size=6))
def test_a_message_ends_at_the_same_line_whether_all_of_it_is_looked_at_or_the_last_line_alone(typed: list[str]) -> None:
    in_block = opens_block(typed[0])
    for n in range(1, len(typed) + 1):
        whole = is_complete("\n".join(typed[:n]))
        if n > 1:
            assert is_last(typed[n - 1], in_block=in_block) == whole
        if whole:
            break


@given(st.text(max_size=40))
def test_whatever_is_typed_has_a_meaning_or_is_a_wrong_command(text: str) -> None:
    is_complete(text)
    try:
        meaning = parse(text)
    except UserError:
        assert text.startswith("/")
    else:
        assert meaning is None or isinstance(meaning, Say | Call)


def test_a_backslash_at_the_end_continues_the_message() -> None:
    assert not is_complete("one \\")
    assert is_complete("one \\\ntwo")
    assert parse("one \\\ntwo") == Say("one \ntwo")


@pytest.mark.parametrize("blank", ["", "  ", "\n", FENCE + FENCE, f"{FENCE}\n \n{FENCE}"])
def test_blank_input_means_nothing(blank: str) -> None:
    assert parse(blank) is None


def test_commands_take_what_stands_after_them() -> None:
    assert parse("/save my talk.json ") == Call(Command.SAVE, "my talk.json")
    assert parse("/QUIT") == Call(Command.QUIT)
    assert parse("/system") == Call(Command.SYSTEM)
    assert parse("/system Be brief.") == Call(Command.SYSTEM, "Be brief.")


@pytest.mark.parametrize("typed", ["/nope", "/", "/usr/bin is a path", "/save", "/load  ", "/reset now"])
def test_a_wrong_command_is_refused(typed: str) -> None:
    with pytest.raises(UserError):
        parse(typed)


def test_a_space_in_front_makes_a_slash_an_ordinary_character() -> None:
    assert parse(" /usr/bin is a path") == Say("/usr/bin is a path")


def test_help_names_every_command() -> None:
    assert set(MEANING) == set(Command)
    assert all(command in help_text() for command in Command)
