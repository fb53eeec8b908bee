"""What a line typed into the conversation means. Pure.

A message may span lines: a line that ends in a backslash goes on, and so does everything between two `\"\"\"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mdi.errors import UserError

FENCE = '"""'


class Command(StrEnum):
    HELP = "/help"
    RESET = "/reset"
    STATS = "/stats"
    PLAN = "/plan"
    SYSTEM = "/system"
    SAVE = "/save"
    LOAD = "/load"
    QUIT = "/quit"


MEANING = {
    Command.HELP: ("", "show this"),
    Command.RESET: ("", "begin a new conversation"),
    Command.STATS: ("", "speed of the last answer, and what each node computed"),
    Command.PLAN: ("", "which blocks of the model are on which node"),
    Command.SYSTEM: ("TEXT", "give the model a system message; without TEXT take it away"),
    Command.SAVE: ("FILE", "write the conversation to a file"),
    Command.LOAD: ("FILE", "go on with a conversation from a file"),
    Command.QUIT: ("", "leave; so does Ctrl-D"),
}
_NEED_FILE = {Command.SAVE, Command.LOAD}


@dataclass(frozen=True, slots=True)
class Say:
    """A message for the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A command, with what stood after its name."""

    command: Command
    argument: str = ""


def is_complete(text: str) -> bool:
    """Whether Enter sends `text`, or the message goes on in the next line."""
    if (block := _block(text)) is not None:
        return block.endswith(FENCE)
    return not text.endswith("\\")


def is_last(line: str, *, in_block: bool) -> bool:
    """Whether a message is complete with `line`, which is not its first and was not preceded by its last.

    What `is_complete` says of the whole message, without looking at it again. `in_block`: its first line opens one.
    """
    return line.rstrip().endswith(FENCE) if in_block else not line.endswith("\\")


def opens_block(line: str) -> bool:
    """Whether a message whose first line is `line` goes on to the next fence."""
    return _block(line) is not None


def parse(text: str) -> Say | Call | None:
    """The meaning of a complete input; None for a blank one. Raises UserError for an unknown or incomplete command.

    Only a slash in the very first column makes a command, so a space before it sends the line as it is.
    """
    if text.startswith("/"):
        return _call(text)
    block = _block(text)
    message = text.replace("\\\n", "\n").strip() if block is None else block.removesuffix(FENCE).strip("\n")
    return Say(message) if message.strip() else None


def _block(text: str) -> str | None:
    """What follows the opening fence; None where there is none."""
    stripped = text.strip()
    return stripped[len(FENCE) :] if stripped.startswith(FENCE) else None


def _call(text: str) -> Call:
    name, _, argument = text.partition(" ")
    name, argument = name.strip(), argument.strip()
    try:
        command = Command(name.lower())
    except ValueError:
        hint = "/help lists the commands; to send a line that begins with a slash, type a space before it"
        raise UserError(f"there is no command {name[:40]}", hint=hint) from None
    wanted, _ = MEANING[command]
    if argument and not wanted:
        raise UserError(f"{command} takes nothing after it")
    if not argument and command in _NEED_FILE:
        raise UserError(f"{command} needs the name of a file", hint=f"{command} conversation.json")
    return Call(command, argument)


def help_text() -> str:
    """A line for each command, and the keys."""
    lines = [f"{f'{command} {argument}'.rstrip():<14} {meaning}" for command, (argument, meaning) in MEANING.items()]
    keys = 'Alt-Enter or a backslash at the end of a line begins a new one; """ opens and closes a block of lines.'
    return "\n".join([*lines, "", keys, "Ctrl-C stops an answer and keeps what was said."])
