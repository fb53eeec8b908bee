"""The hub's cache of this user, which other programs share: `models--ORG--NAME/{blobs,refs,snapshots}` (huggingface_hub, "Manage cache").

A blob is named by its hash and appears whole, by a rename; what is unfinished is called `.incomplete`. A snapshot is a commit's files,
as links to blobs. So nothing else has to be remembered: what has its name is whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import MdiError, ModelError, UserError
from mdi.hub.files import COMMIT, RemoteFile
from mdi.hub.reference import Reference
from mdi.hub.selection import CONFIG, TOKENIZERS, gguf_models, shard_names
from mdi.model.checkpoint import INDEX, SINGLE
from mdi.model.fields import Fields
from mdi.model.gguf.files import part_paths

PREFIX, SEPARATOR = "models--", "--"
INCOMPLETE = ".incomplete"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what network file systems answer that know none


@dataclass(frozen=True, slots=True)
class HubCache:
    """Paths and state. Everything that it is asked about a model it reads from the disk."""

    root: Path

    @classmethod
    def default(cls) -> HubCache:
        """`$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`: wherever other programs look for models."""
        from huggingface_hub import constants

        return cls(Path(constants.HF_HUB_CACHE).absolute())

    def folder(self, repository: str) -> Path:
        return self.root / (PREFIX + repository.replace("/", SEPARATOR))

    def blob(self, repository: str, file: RemoteFile) -> Path:
        return self.folder(repository) / "blobs" / file.digest

    def partial(self, repository: str, file: RemoteFile) -> Path:
        """Where a download grows; `huggingface_hub` removes such files when it cleans its cache."""
        blob = self.blob(repository, file)
        return blob.with_name(blob.name + INCOMPLETE)

    def snapshot(self, repository: str, commit: str) -> Path:
        return self.folder(repository) / "snapshots" / commit

    def holds(self, repository: str, commit: str, file: RemoteFile) -> bool:
        """Whether the file is there with the size that it should have."""
        return size_of(self.snapshot(repository, commit) / file.path) == file.n_bytes

    def link(self, repository: str, commit: str, file: RemoteFile) -> None:
        """Let a commit have a file whose blob is there. Where the file system has no links, the blob itself moves."""
        pointer, blob = self.snapshot(repository, commit) / file.path, self.blob(repository, file)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        new = pointer.with_name(f"{pointer.name}.{os.getpid()}")
        try:
            new.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            blob.replace(pointer)
        else:
            new.replace(pointer)

    def set_ref(self, repository: str, revision: str, commit: str) -> None:
        """Remember which commit a branch or tag is. A commit needs no such note."""
        if revision == commit:
            return
        path = self.folder(repository) / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        new.write_text(commit)
        new.replace(path)

    def commit(self, reference: Reference) -> str | None:
        """The commit that was downloaded last for a revision."""
        if COMMIT.fullmatch(reference.revision):
            return reference.revision
        try:
            text = (self.folder(reference.repository) / "refs" / reference.revision).read_text().strip()
        except (OSError, ValueError):
            return None
        return text if COMMIT.fullmatch(text) else None

    def find(self, reference: Reference) -> Path | None:
        """A directory or a GGUF file for `mdi.model.source.resolve`; None unless all of the model is there."""
        commit = self.commit(reference)
        if commit is None:
            return None
        snapshot = self.snapshot(reference.repository, commit)
        if reference.file is None and is_whole(snapshot):
            return snapshot
        models = whole_ggufs(snapshot)
        if reference.file is not None:
            wanted = reference.file
            models = {name: paths for name, paths in models.items() if wanted in paths or wanted.lower() in name.lower()}
        return snapshot / next(iter(models.values()))[0] if len(models) == 1 else None

    @contextmanager
    def lock(self, repository: str, file: RemoteFile) -> Iterator[None]:
        """Hold a blob for one program: the lock that `huggingface_hub` takes too. Raises UserError when another one has it.

        The kernel lets go of it when the process ends. A file system that knows no locks is used without.
        """
        path = self.root / ".locks" / self.folder(repository).name / f"{file.digest}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _try_lock(descriptor, f"{file.path} of {repository}")
            yield
        finally:
            os.close(descriptor)

    def free_bytes(self) -> int:
        """Room on the cache's disk for this user."""
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        return shutil.disk_usage(existing).free


def _try_lock(descriptor: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another program is downloading {what} now", hint="start again when it is done") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def is_whole(snapshot: Path) -> bool:
    """Whether a snapshot has all of a safetensors checkpoint: config, tokenizer, and every file of weights."""
    if not (snapshot / CONFIG).is_file() or not any((snapshot / name).is_file() for name in TOKENIZERS):
        return False
    if (snapshot / SINGLE).is_file():
        return True
    try:
        names = shard_names(Fields.read(snapshot / INDEX))
    except ModelError:
        return False
    return all((snapshot / name).is_file() for name in names)


def whole_ggufs(snapshot: Path) -> dict[str, list[str]]:
    """GGUF models of a snapshot that have all their parts."""
    files = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf") if path.is_file()]
    whole = {}
    for name, paths in gguf_models(files).items():
        with suppress(ModelError):
            part_paths(snapshot / paths[0])
            whole[name] = paths
    return whole


def size_of(path: Path) -> int | None:
    """Of a file, or of what a link leads to; None for what is no file."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def explain(error: OSError, root: Path) -> MdiError:
    """A sentence for what the disk refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk of {root} is full", hint="make room and start again: what is there already is kept; mdi models rm NAME"
        )
    return UserError(
        f"{error.filename or root} cannot be used: {error.strerror or error}",
        hint="check its owner, or point HF_HOME at another directory",
    )
