"""Before a system's daemon starts: the cluster key, and the settings on an SD card's boot partition, come to where it reads them.

The boot partition is FAT: it keeps no owners and modes, and whoever takes the card reads it on any computer. So the key is moved
away from it, as Raspberry Pi OS does with the password and the Wi-Fi key that its imager writes there.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from mdi.cluster.key import ClusterKey
from mdi.cluster.private_files import explain, write_private
from mdi.errors import MdiError, UserError
from mdi.node.settings import parse_settings, read_bounded

KEY_NAME = "cluster.key"
SETTINGS_NAME = "mdi.toml"
COMPLAINT_NAME = "mdi-error.txt"  # beside the boot file: a device without a screen has no other way to tell

_log = logging.getLogger(__name__)


def found_cluster(directory: Path, group_id: int | None) -> ClusterKey | None:
    """The key of a new cluster, made just now; None if `directory` holds a key already. Raises UserError."""
    path = directory / KEY_NAME
    if path.exists():
        read_key(path)
        return None
    key = ClusterKey.generate()
    keep_key(key, directory, group_id)
    return key


def keep_key(key: ClusterKey, directory: Path, group_id: int | None) -> None:
    """Write the key for its owner and, with `group_id`, for that group to read (mode 0640). Raises UserError."""
    path = directory / KEY_NAME
    write_private(path, f"{key.text}\n".encode())
    if group_id is not None:
        with explain(path, "handed to its group"):
            os.chown(path, -1, group_id)
            path.chmod(0o640)


def read_key(path: Path) -> ClusterKey:
    """A key on a file system without modes, or one that a person saved: who else may read it is not asked. Raises UserError."""
    data = read_bounded(path)
    try:
        return ClusterKey.parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} holds no cluster key: it is not text", hint="save it again as plain text") from error
    except UserError as error:
        raise UserError(f"{path} holds no cluster key: {error}", hint=error.hint) from error


def take_over(boot_file: Path, directory: Path, group_id: int | None) -> bool:
    """Move the key that `boot_file` names into `directory`, and copy the settings there. True if a key came.

    Later boots find the key gone from the partition, and go on with the one that was kept; a new one there replaces it. Raises
    UserError, and changes nothing, if the settings are wrong or there is no key at all: a device that was meant to join must not
    found a cluster of its own. The reason then lies beside `boot_file`, in COMPLAINT_NAME.
    """
    complaint = boot_file.parent / COMPLAINT_NAME
    try:
        came = _take_over(boot_file, directory, group_id)
    except MdiError as error:
        with suppress(OSError):  # a card that is write-protected: the journal has the error too
            complaint.write_text("\r\n".join((str(error), *([error.hint] if error.hint else []), "")), encoding="utf-8")
        raise
    with suppress(OSError):
        complaint.unlink(missing_ok=True)
    return came


def _take_over(boot_file: Path, directory: Path, group_id: int | None) -> bool:
    data = read_bounded(boot_file)
    settings = parse_settings(data, str(boot_file))
    offered = boot_file.parent / settings.key_file if settings.key_file else None
    came = offered is not None and offered.exists()
    if offered is not None and came:
        keep_key(read_key(offered), directory, group_id)
    elif not (directory / KEY_NAME).exists():
        raise UserError(
            f"{boot_file} names no key that is there, and this device has none yet",
            hint=f'put the key of your cluster beside it and write key_file = "{KEY_NAME}"',
        )
    _copy_settings(data, directory / SETTINGS_NAME)
    if offered is not None and came:
        try:
            offered.unlink()
        except OSError as error:
            _log.warning("%s holds the cluster key and cannot be removed (%s): do that by hand", offered, error.strerror)
    return came


def _copy_settings(data: bytes, path: Path) -> None:
    write_private(path, data)
    with explain(path, "written"):
        path.chmod(0o644)  # no secrets in it: the daemon is another user
