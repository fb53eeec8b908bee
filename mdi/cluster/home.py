"""The directory that holds one node's state, and the lock that keeps a second daemon out of it."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from mdi.cluster.private_files import explain, read_private, write_private
from mdi.errors import UserError

LOCK_RETRY_S = 0.05  # `running` holds the lock for some microseconds: one retry tells its look from a daemon


@dataclass(frozen=True, slots=True)
class RunningNode:
    """What a running daemon tells the commands on its own device. `started_s` is Unix time."""

    pid: int
    port: int
    name: str
    node_id: str
    started_s: float


@dataclass(frozen=True, slots=True)
class Home:
    """One node's directory; `key_file` moves the cluster key elsewhere (an image, a systemd credential)."""

    path: Path
    key_file: Path | None = None

    @classmethod
    def open(cls, environ: Mapping[str, str] = os.environ) -> Home:
        """The home of this user: `$MDI_HOME`, else the user data directory of the system; created if missing.

        `$MDI_CLUSTER_KEY_FILE` overrides where the cluster key lies. Raises UserError if the directory cannot be used.
        """
        path = environ.get("MDI_HOME") or platformdirs.user_data_dir("mdi", appauthor=False)
        key_file = environ.get("MDI_CLUSTER_KEY_FILE")
        return cls(Path(path).expanduser().absolute(), Path(key_file).expanduser() if key_file else None).create()

    def create(self) -> Home:
        """Make the directories (mode 0700) where missing. Raises UserError, also if everybody may write to the home."""
        for directory in (self.path, self.packs_path, self.profiles_path):
            with explain(directory, "created"):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(self.path.stat().st_mode) & stat.S_IWOTH:
            raise UserError(f"everybody on this device may write to {self.path}", hint=f"chmod 700 {self.path}")
        return self

    @property
    def key_path(self) -> Path:
        return self.key_file or self.path / "cluster.key"

    @property
    def identity_path(self) -> Path:
        return self.path / "identity.pem"

    @property
    def node_path(self) -> Path:
        return self.path / "node.json"

    @property
    def packs_path(self) -> Path:
        return self.path / "packs"

    @property
    def profiles_path(self) -> Path:
        return self.path / "profiles"

    @property
    def history_path(self) -> Path:
        return self.path / "history"

    @property
    def peers_path(self) -> Path:
        return self.path / "peers"

    @property
    def lock_path(self) -> Path:
        return self.path / "lock"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this home for one daemon; the kernel lets go of it when the process ends, however it ends.

        Raises UserError, naming the process that holds it.
        """
        with explain(self.lock_path, "opened"):
            descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _try_lock(descriptor):
                time.sleep(LOCK_RETRY_S)
                if not _try_lock(descriptor):
                    raise UserError(
                        f"a node already runs from {self.path} (process {_read_pid(descriptor) or 'unknown'})",
                        hint="stop it first, or set MDI_HOME to another directory to run a second node",
                    )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def write_running(self, node: RunningNode) -> None:
        """Publish `node` to the commands on this device; call it with the lock held."""
        write_private(self.node_path, json.dumps(asdict(node), indent=1).encode())

    def write_peers(self, peers: Sequence[str]) -> None:
        """Remember the addresses given by hand to `mdi node start`, for the commands on this device."""
        write_private(self.peers_path, "".join(f"{peer}\n" for peer in peers).encode())

    def read_peers(self) -> tuple[str, ...]:
        return tuple((read_private(self.peers_path) or b"").decode(errors="replace").split())

    def clear_running(self) -> None:
        self.node_path.unlink(missing_ok=True)

    def running(self) -> RunningNode | None:
        """The daemon that runs from this home now; None if there is none, even if a crashed one left its file.

        Raises UserError if the home is another user's.
        """
        holder = self._holder()
        if holder is None or (data := read_private(self.node_path)) is None:
            return None
        try:
            fields = json.loads(data)
            node = RunningNode(
                int(fields["pid"]), int(fields["port"]), str(fields["name"]), str(fields["node_id"]), float(fields["started_s"])
            )
        except (ValueError, TypeError, KeyError):
            return None
        return node if node.pid == holder else None

    def _holder(self) -> int | None:
        with explain(self.lock_path, "read"):
            try:
                descriptor = os.open(self.lock_path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_pid(descriptor)
        else:
            return None
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 20, 0)
    return int(text) if text.isdigit() else None
