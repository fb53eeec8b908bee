"""From any exception to one sentence, one hint and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

from mdi.cli.terminal import note
from mdi.errors import MdiError

INTERRUPTED = 130  # 128 + SIGINT, as shells count
_BUG_HINT = "please report it with what `mdi --debug ...` prints"


def report(error: BaseException, *, debug: bool) -> int:
    """Print `error` on stderr: its sentence, its hint in a second line, a traceback with `debug`. Returns the exit code."""
    error = _root(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        _discard_stdout()
        return 1
    if debug:
        traceback.print_exception(error)
    if isinstance(error, MdiError):
        describe(error)
        return error.exit_code
    note(f"mdi: this is a bug in MDI: {type(error).__name__}: {error}".rstrip(": "), dim=False)
    note(_BUG_HINT)
    return 1


def describe(error: MdiError) -> None:
    """The sentence, what was noted beside it, and the hint if there is one."""
    note(f"mdi: {error}", dim=False)
    for sentence in getattr(error, "__notes__", ()):
        note(sentence, dim=False)
    if error.hint is not None:
        note(error.hint)


def _root(error: BaseException) -> BaseException:
    """A task group wraps what went wrong inside it: ours counts first, else the first."""
    while isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(MdiError)
        error = (ours or error).exceptions[0]
    return error


def _discard_stdout() -> None:
    """Whoever read has gone; what is still buffered must not raise again when the interpreter ends."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)
