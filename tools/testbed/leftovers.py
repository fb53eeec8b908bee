"""Takes a testbed down: everything that bears its name, whoever left it. It needs no record of what was built."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from mdi.errors import ClusterError, UserError
from tools.testbed.cgroups import ControlGroups
from tools.testbed.enter import NAMESPACES
from tools.testbed.machine import run_command
from tools.testbed.network import PREFIX, bed_prefix, belongs
from tools.testbed.spec import NAME

TERM_S = 8.0  # a node drains its calls for 2 s, at a twentieth of a core the rest takes a while
KILL_S = 5.0
RMDIR_S = 5.0  # a control group is busy until the kernel has buried its last process
RETRY_S = 0.02
KEPT = "kept"  # this file in a bed's directory says that `up` left it on purpose


def bed_directory(bed: str) -> Path:
    """Homes, logs and locks; a fixed place, so that another process finds it."""
    return Path(tempfile.gettempdir()) / bed_prefix(bed)


def beds() -> set[str]:
    """The names of all testbeds of which anything is left on this machine."""
    names = {name.removeprefix(PREFIX).split(".")[0] for name in _namespaces(None)}
    names |= {path.name.removeprefix(PREFIX) for tree in _trees() for path in tree.glob(f"{PREFIX}*")}
    names |= {path.name.removeprefix(PREFIX) for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if path.is_dir()}
    return {name for name in names if NAME.fullmatch(name)}


@contextmanager
def locked(bed: str) -> Iterator[None]:
    """One process builds or removes a bed at a time. Raises UserError when another one has it."""
    path = Path(tempfile.gettempdir()) / f"{bed_prefix(bed)}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                break
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"testbed {bed} is being used by another process", hint="wait for it, or give your testbed another name"
            ) from None
        os.close(descriptor)  # the one who held it has just taken the file away
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def remove(bed: str) -> None:
    """Ends every process of the testbed, and removes its namespaces, control groups and directory; nothing may be there.

    Raises ClusterError when the kernel does not let go of something.
    """
    _thaw(bed)
    _end(pids(bed))
    for namespace in _namespaces(bed):
        run_command(("ip", "netns", "del", namespace))
    for tree in _trees():
        _remove_group(tree / bed_prefix(bed))
    with suppress(FileNotFoundError):
        shutil.rmtree(bed_directory(bed))


def pids(bed: str) -> set[int]:
    """The processes in the testbed's namespaces and control groups."""
    found: set[int] = set()
    for namespace in _namespaces(bed):
        found |= {int(pid) for pid in run_command(("ip", "netns", "pids", namespace)).split()}
    for tree in _trees():
        for path in (tree / bed_prefix(bed)).rglob("cgroup.procs"):
            with suppress(OSError):
                found |= {int(pid) for pid in path.read_text().split()}
    return found - {os.getpid(), 0}


def _namespaces(bed: str | None) -> list[str]:
    try:
        names = sorted(path.name for path in NAMESPACES.iterdir())
    except OSError:
        return []
    return [name for name in names if belongs(name, bed)]


def _trees() -> tuple[Path, ...]:
    groups = ControlGroups.detect()
    return groups.trees() if groups else ()


def _thaw(bed: str) -> None:
    """What is frozen hears no signal. Whoever froze it, if it still lives, thaws all when it is ended."""
    groups = ControlGroups.detect()
    if groups is None or not groups.freezes:
        return
    _, _, thaws = groups.freezer(bed, "")
    for file in {groups.freezer(bed, path.name)[0] for directory in groups.beds(bed) for path in directory.glob("*/")}:
        with suppress(OSError):
            file.write_text(thaws)


def _end(numbers: set[int]) -> None:
    processes = []
    for number in numbers:
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(number))
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)  # a stopped one would not hear it
    _, alive = psutil.wait_procs(processes, TERM_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(alive, KILL_S)
    if alive:
        raise ClusterError(f"process {alive[0].pid} of a testbed does not end", hint=f"look at it: ps {alive[0].pid}")


def _remove_group(path: Path) -> None:
    if not path.is_dir():
        return
    inner = [each for each in path.iterdir() if each.is_dir()]
    deadline_s = time.monotonic() + RMDIR_S
    for directory in (*inner, path):
        while True:
            try:
                directory.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > deadline_s:
                    raise ClusterError(f"{directory} cannot be removed: {error.strerror}") from None
                time.sleep(RETRY_S)
