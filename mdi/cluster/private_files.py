"""Secret files: written whole or not at all, and readable by their owner only."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdi.errors import UserError

MAX_PRIVATE_BYTES = 64 << 10  # a key or an identity is below 1 KiB; a wrong path must not read a disk into memory


def write_private(path: Path, data: bytes, *, replace: bool = True) -> bool:
    """Write `data` to `path` with mode 0600, atomically: temporary file, fsync, rename, fsync of the directory.

    With `replace=False` an existing file stays, and the answer is False: of two processes that create it, exactly one wins.
    Raises UserError when the file cannot be written.
    """
    with explain(path, "written"):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp creates with 0600
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                try:
                    path.hardlink_to(temporary)
                except FileExistsError:
                    return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    return True


def read_private(path: Path) -> bytes | None:
    """The content of a secret file, or None if there is none.

    Raises UserError if it cannot be read, is larger than MAX_PRIVATE_BYTES, or is open to others, as ssh does. A file of root
    that is shown to us by its group passes: so do systemd's LoadCredential and `root:mdi 0640` hand out keys.
    """
    with explain(path, "read"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            lent_by_root = status.st_uid == 0 and os.geteuid() != 0
            if stat.S_IMODE(status.st_mode) & (0o037 if lent_by_root else 0o077):
                mode = f"{stat.S_IMODE(status.st_mode):04o}"
                raise UserError(f"{path} is a secret, but others may read it (mode {mode})", hint=f"chmod 600 {path}")
            data = file.read(MAX_PRIVATE_BYTES + 1)
    if len(data) > MAX_PRIVATE_BYTES:
        raise UserError(f"{path} is larger than {MAX_PRIVATE_BYTES} bytes: it is not a file of MDI")
    return data


@contextmanager
def explain(path: Path, participle: str) -> Iterator[None]:
    """Turn an OSError about `path` into a UserError: "PATH cannot be written: No space left on device"."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be {participle}: {error.strerror or error}",
            hint="check its owner and the free space, or point MDI_HOME at another directory",
        ) from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
