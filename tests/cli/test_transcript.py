from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.cli.transcript import FORMAT, load, save
from mdi.errors import UserError
from mdi.model.chat import Message

TALK = [Message("system", "Be brief."), Message("user", "Hällo 🦙"), Message("assistant", "Hi\nthere")]
texts = st.text(st.characters(codec="utf-8"), max_size=50)


@given(st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), texts), max_size=6))
def test_what_was_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, messages: list[Message]) -> None:
    file = str(tmp_path_factory.mktemp("talk") / "talk.json")
    save(file, "demo", messages)
    assert load(file) == messages


def test_a_saved_conversation_is_private_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text("older")
    save(str(file), "demo", TALK)
    assert load(str(file)) == TALK
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]


def test_saving_where_it_cannot_be_says_so_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file") as caught:
        save(str(tmp_path / "missing" / "talk.json"), "demo", TALK)
    assert caught.value.hint is not None
    assert "directory" in caught.value.hint


def wrapped(messages: Any) -> str:
    return json.dumps({"format": FORMAT, "messages": messages})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format"),
        ('{"messages": []}', "format"),
        (wrapped({}), "not a list"),
        (wrapped([{"role": "user"}]), "message 1 has no role and content"),
        (wrapped([{"role": "user", "content": 3}]), "message 1 has no role and content"),
        (wrapped([{"role": "user", "content": "a"}, "b"]), "message 2"),
        (wrapped([{"role": "tool", "content": "a"}]), "'tool'"),
        (wrapped([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]), "only be the first"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused_with_the_reason(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "talk.json"
    file.write_text(content)
    with pytest.raises(UserError, match=reason):
        load(str(file))


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            load(str(path))
