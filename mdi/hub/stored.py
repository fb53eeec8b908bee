"""What lies in the hub's cache, and how it goes away again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import MdiError, ModelError, UserError
from mdi.hub.cache import INCOMPLETE, PREFIX, SEPARATOR, HubCache, is_whole, size_of, whole_ggufs
from mdi.hub.reference import Reference
from mdi.model.gguf.files import part_paths

LIST_THEM = "mdi models list --here shows what is"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One repository in the cache. `n_bytes`: all its blobs; `unfinished_bytes`: those of downloads that were cut.

    `paths`: what can be run, a snapshot's directory or GGUF files (the first part of each), with what to type for it.
    """

    repository: str
    folder: Path
    n_bytes: int
    unfinished_bytes: int
    paths: tuple[tuple[Reference, Path], ...]


def stored_models(cache: HubCache) -> list[StoredModel]:
    """Every repository of models here, by name; also those that other programs use and MDI cannot run (without `paths`)."""
    folders = sorted(cache.root.glob(f"{PREFIX}*"), key=lambda path: path.name.lower())
    return [_stored(cache, folder) for folder in folders if folder.is_dir()]


def _stored(cache: HubCache, folder: Path) -> StoredModel:
    repository = folder.name.removeprefix(PREFIX).replace(SEPARATOR, "/", 1)
    blobs, snapshots = (list((folder / name).rglob("*")) for name in ("blobs", "snapshots"))
    files = [*blobs, *(path for path in snapshots if not path.is_symlink())]
    unfinished = sum(size_of(path) or 0 for path in files if path.name.endswith(INCOMPLETE))
    n_bytes = sum(size_of(path) or 0 for path in files) - unfinished
    return StoredModel(repository, folder, n_bytes, unfinished, tuple(_runnable(cache, repository)))


def _runnable(cache: HubCache, repository: str) -> Iterator[tuple[Reference, Path]]:
    refs = cache.folder(repository) / "refs"
    for path in sorted(path for path in refs.rglob("*") if path.is_file()):
        with suppress(MdiError):  # a ref that no revision is called, which another program wrote
            reference = Reference(repository, path.relative_to(refs).as_posix())
            commit = cache.commit(reference)
            if commit is None:
                continue
            snapshot = cache.snapshot(repository, commit)
            if is_whole(snapshot):
                yield reference, snapshot
            for paths in whole_ggufs(snapshot).values():
                yield Reference(repository, reference.revision, paths[0]), snapshot / paths[0]


def remove(cache: HubCache, reference: Reference) -> int:
    """Delete a repository with all its revisions, or one GGUF model of it; unfinished downloads too. Returns the bytes freed.

    Raises ModelError when it is not here, UserError when it cannot be deleted.
    """
    folder = cache.folder(reference.repository)
    found = cache.find(reference) if reference.file is not None else folder
    if found is None or not folder.is_dir():
        raise ModelError(f"{reference} is not here", hint=LIST_THEM)
    before = _total(folder)
    try:
        if found is folder:
            shutil.rmtree(folder)
            shutil.rmtree(cache.root / ".locks" / folder.name, ignore_errors=True)
        else:
            _remove_parts(found, folder / "snapshots")
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be deleted: {error.strerror}") from error
    return before - (_total(folder) if folder.exists() else 0)


def _remove_parts(path: Path, snapshots: Path) -> None:
    """A GGUF model's files, and their blobs unless another revision has them too."""
    for part in part_paths(path):
        blob = part.resolve()
        part.unlink()
        if not any(other.is_symlink() and other.resolve() == blob for other in snapshots.rglob("*")):
            blob.unlink(missing_ok=True)


def _total(folder: Path) -> int:
    return sum(size_of(path) or 0 for path in folder.rglob("*") if not path.is_symlink())
