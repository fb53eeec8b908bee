"""What goes to the screen: answers on stdout, everything about them on stderr."""

from __future__ import annotations

import os
import re
import sys

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model's text must not move the cursor or rename the window


def on_terminal() -> bool:
    """Whether a person types and reads: stdin and stdout are both a terminal."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def say(text: str, end: str = "\n") -> None:
    """Print on stdout, at once; on a terminal without control characters."""
    shown = _CONTROL.sub("", text) if sys.stdout.isatty() else text
    sys.stdout.write(shown + end)
    sys.stdout.flush()


def note(text: str, *, dim: bool = True) -> None:
    """One line on stderr; dim on a terminal, unless `NO_COLOR` is set."""
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
