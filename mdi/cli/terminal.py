"""What goes to the screen: answers on stdout, everything about them on stderr."""

from __future__ import annotations

import os
import re
import sys

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model's text must not move the cursor or rename the window


def on_terminal() -> bool:
    """Whether a person types and reads: stdin and stdout are both a terminal."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


_open_line = False  # whether stdout, a terminal, stands in the middle of a line


def say(text: str, end: str = "\n") -> None:
    """Print on stdout, at once; on a terminal without control characters."""
    global _open_line
    shown = (_CONTROL.sub("", text) if sys.stdout.isatty() else text) + end
    sys.stdout.write(shown)
    sys.stdout.flush()
    if shown:
        _open_line = sys.stdout.isatty() and not shown.endswith("\n")


def note(text: str, *, dim: bool = True) -> None:
    """One line on stderr; dim on a terminal, unless `NO_COLOR` is set. It does not begin in the middle of an answer's line there."""
    global _open_line
    if _open_line and sys.stderr.isatty():
        sys.stderr.write("\n")
        _open_line = False
    shown = _CONTROL.sub("", text)
    if dim and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        shown = f"\x1b[2m{shown}\x1b[22m"
    sys.stderr.write(shown + "\n")
    sys.stderr.flush()


def never_fail_to_encode() -> None:
    """A terminal that cannot show a character shows `?` instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
