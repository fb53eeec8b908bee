from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from mdi.cli import inputs
from mdi.cli.commands import Command
from mdi.cli.inputs import PipedInputs, TypedInputs, completer
from mdi.errors import UserError


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


async def test_lines_come_one_by_one_before_the_writer_ends(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    piped = PipedInputs(reader)
    waiting = asyncio.ensure_future(piped.read())
    os.write(writer, "hällo".encode()[:2])
    os.write(writer, "hällo\n".encode()[2:] + b"second\r\nlast")
    assert await waiting == "hällo"
    assert await piped.read() == "second"
    os.close(writer)
    assert await piped.read() == "last"
    assert await piped.read() is None


async def test_lines_that_belong_together_are_one_input(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b'a \\\nb\n"""\nc\n\nd\n"""\n"""open')
    os.close(writer)
    piped = PipedInputs(reader)
    assert [await piped.read() for _ in range(4)] == ["a \\\nb", '"""\nc\n\nd\n"""', '"""open', None]


async def test_a_plain_file_is_read_like_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "questions"
    path.write_text("one\n\ntwo\n")
    with path.open() as file:
        piped = PipedInputs(file.fileno())
        assert [await piped.read() for _ in range(4)] == ["one", "", "two", None]


async def test_all_of_stdin_is_one_prompt(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"one\n\ntwo\\\n")
    os.close(writer)
    assert await PipedInputs(reader).read_all() == "one\n\ntwo\\"


async def test_endless_input_is_refused(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_INPUT_BYTES", 1000)
    reader, writer = pipe
    os.write(writer, b"x" * 1001)
    with pytest.raises(UserError, match="came on stdin"):
        await PipedInputs(reader).read()


@pytest.mark.parametrize("lines", [['"""', *["x" * 999] * 300], ["x" * 998 + "\\"] * 300])
async def test_an_input_whose_lines_never_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(inputs, "MAX_INPUT_BYTES", 200_000)
    path = tmp_path / "endless"
    path.write_text("\n".join(lines))
    with path.open("rb") as file, pytest.raises(UserError, match="stdin"):
        await PipedInputs(file.fileno()).read()


async def test_a_reader_that_is_given_up_leaves_nothing_behind(pipe: tuple[int, int]) -> None:
    reader, _ = pipe
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await PipedInputs(reader).read()
    assert not asyncio.get_running_loop().remove_reader(reader)


ENTER, ALT_ENTER, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x03", "\x04"


async def typed(history: Path, *keys: str) -> str | None:
    """What one prompt returns for these keys, through the real line editor."""
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text("".join(keys))
        async with asyncio.timeout(10):
            return await TypedInputs(history).read()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (("hello", ENTER), "hello"),
        (("a", ALT_ENTER, "b", ENTER), "a\nb"),
        (("a\\", ENTER, "b", ENTER), "a\\\nb"),
        (('"""a', ENTER, "b", ENTER, '"""', ENTER), '"""a\nb\n"""'),
        ((CTRL_D,), None),
    ],
)
async def test_keys_at_the_prompt(tmp_path: Path, keys: tuple[str, ...], text: str | None) -> None:
    assert await typed(tmp_path / "history", *keys) == text


async def test_ctrl_c_at_the_prompt_is_told_to_the_caller(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        await typed(tmp_path / "history", "half a line", CTRL_C)


def completed(text: str) -> list[str]:
    return [completion.text for completion in completer().get_completions(Document(text), CompleteEvent())]


def test_commands_are_completed_and_words_are_not() -> None:
    assert completed("/s") == ["/stats", "/system", "/save"]
    assert completed("/") == list(Command)
    assert completed("save") == completed("a /s") == completed("/system /s") == []


def test_names_of_files_are_completed(tmp_path: Path) -> None:
    (tmp_path / "talk.json").touch()
    assert completed(f"/load {tmp_path}/ta") == ["lk.json"]


async def test_history_is_private_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = tmp_path / "history"
    await typed(history, "hello", ENTER)
    assert "hello" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(inputs, "MAX_HISTORY_BYTES", 10)
    await typed(history, "again", ENTER)
    assert "hello" not in history.read_text()
    assert "hello" in (tmp_path / "history.old").read_text()
