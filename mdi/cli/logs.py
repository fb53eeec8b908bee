"""Where the log goes: stderr, which systemd and terminals both show."""

from __future__ import annotations

import logging
import os


def log_to_stderr(*, debug: bool, daemon: bool) -> None:
    """A daemon tells what it does; the other commands only what a person must know. Other libraries only with `debug`."""
    form = "%(asctime)s %(name)s %(levelname)s %(message)s" if debug else "%(message)s"
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, format=form, force=True)
    logging.getLogger("mdi").setLevel(logging.DEBUG if debug else logging.INFO if daemon else logging.WARNING)
    # gRPC's core writes to stderr by itself, each port that is taken for instance; it reads this when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "INFO" if debug else "NONE")
