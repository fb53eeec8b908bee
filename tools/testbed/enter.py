"""Starts a command inside a node of a testbed: its control groups, its processors, its network namespace.

    python enter.py NAMESPACE GROUP,GROUP CPU,CPU COMMAND ...

Nothing but the network is changed: `ip netns exec` would also mount a fresh /sys, in which MDI could not see its memory limit.
Either list may be `-`. The standard library alone, so that it takes some milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000
NAMESPACES = Path("/run/netns")
NOT_FOUND = 127  # what shells say


def set_network_namespace(name: str) -> None:
    """Moves this thread into the named network namespace. Raises OSError."""
    descriptor = os.open(NAMESPACES / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), name)
    finally:
        os.close(descriptor)


def main(arguments: list[str]) -> None:
    namespace, groups, cpus, *command = arguments
    for group in groups.split(",") if groups != "-" else ():
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    if cpus != "-":
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    set_network_namespace(namespace)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_FOUND)


if __name__ == "__main__":
    main(sys.argv[1:])
