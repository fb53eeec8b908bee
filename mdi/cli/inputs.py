"""Where the user's words come from: a terminal with line editing, or a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mdi.cli.commands import Command, is_complete
from mdi.cli.terminal import on_terminal
from mdi.errors import UserError

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

MAX_HISTORY_BYTES = 1 << 20  # some 10,000 questions; then a new file begins, and one old one stays
MAX_INPUT_BYTES = 16 << 20  # more than any context holds: a wrong pipe must not fill the memory
READ_BYTES = 64 << 10


class Inputs(Protocol):
    """Reads one input at a time: one line, or several that belong together."""

    interactive: bool

    async def read(self) -> str | None:
        """The next input, None at the end. Raises KeyboardInterrupt for Ctrl-C at a terminal."""
        ...


def open_inputs(history: Path) -> Inputs:
    """A prompt where stdin and stdout are a terminal, else the lines of stdin. Raises UserError without any stdin."""
    return TypedInputs(history) if on_terminal() else PipedInputs(_stdin())


async def read_stdin() -> str:
    """All of stdin as one prompt. Raises UserError when nothing is piped in."""
    descriptor = _stdin()
    if os.isatty(descriptor):
        raise _no_prompt()
    return await PipedInputs(descriptor).read_all()


def _stdin() -> int:
    if sys.stdin is None:  # the shell's <&-
        raise _no_prompt()
    return sys.stdin.fileno()


def _no_prompt() -> UserError:
    return UserError("there is no prompt to answer", hint='give one with --prompt "...", or pipe it in')


def _too_long() -> UserError:
    return UserError(
        f"more than {MAX_INPUT_BYTES >> 20} MiB came on stdin for one input: no context is that long",
        hint='does it open with """ and never close, or end each line with a backslash?',
    )


class PipedInputs:
    """Lines from a file descriptor, read without a thread: one that blocks in read() would keep the program from ending."""

    interactive = False

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self._ended = False

    async def read(self) -> str | None:
        lines: list[str] = []
        n_characters = 0
        while (line := await self._line()) is not None:
            lines.append(line)
            n_characters += len(line)
            if n_characters > MAX_INPUT_BYTES:  # the buffer is bounded, but not what was taken out of it
                raise _too_long()
            if is_complete("\n".join(lines)):
                break
        return "\n".join(lines) if lines else None

    async def read_all(self) -> str:
        """Everything up to the end, as one input without the newline that ends it."""
        while not self._ended:
            await self._fill()
        text, self._buffer = self._buffer.decode(errors="replace"), b""
        return text.removesuffix("\n")

    async def _line(self) -> str | None:
        while b"\n" not in self._buffer and not self._ended:
            await self._fill()
        if not self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.removesuffix(b"\r").decode(errors="replace")

    async def _fill(self) -> None:
        await _readable(self._descriptor)
        data = os.read(self._descriptor, READ_BYTES)
        self._ended = not data
        self._buffer += data
        if len(self._buffer) > MAX_INPUT_BYTES:
            raise _too_long()


async def _readable(descriptor: int) -> None:
    """Until there is something to read, or the end. It waits for a person: no deadline."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        return  # epoll refuses plain files, which are always readable
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


class TypedInputs:
    """A terminal: line editing, history in a file, several lines at once, completion of commands."""

    interactive = True

    def __init__(self, history: Path) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory

        _bound(history)
        self._session: PromptSession[str] = PromptSession(
            "> ",
            history=FileHistory(str(history)),
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_key_bindings(),
            completer=completer(),
            complete_while_typing=False,
        )

    async def read(self) -> str | None:
        from prompt_toolkit.patch_stdout import patch_stdout

        try:
            with patch_stdout(raw=True):  # a line about a lost node comes above the prompt, not into it
                return await self._session.prompt_async()
        except EOFError:
            return None


def _bound(history: Path) -> None:
    if history.exists() and history.stat().st_size > MAX_HISTORY_BYTES:
        history.replace(history.with_name(f"{history.name}.old"))
    history.touch(mode=0o600)


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.filters import completion_is_selected
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter", filter=~completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def completer() -> Completer:
    """Completes the names of commands, and of files for those that take one."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            text = document.text_before_cursor
            name, space, argument = text.partition(" ")
            if space and name in (Command.SAVE, Command.LOAD):
                yield from paths.get_completions(Document(argument), complete_event)
            elif text.startswith("/") and not space:
                yield from (Completion(command, -len(text)) for command in Command if command.startswith(text))

    return Commands()
