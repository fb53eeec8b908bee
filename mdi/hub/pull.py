"""A model from the hub: what is needed of it, room for it, all of its files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import MdiError, ModelError, UserError
from mdi.hub.cache import HubCache, explain, size_of
from mdi.hub.client import CHUNK_BYTES, Hub
from mdi.hub.files import Listing, RemoteFile
from mdi.hub.pace import FIRST_TRIES, TRIES, Pace
from mdi.hub.reference import Reference
from mdi.hub.selection import CONFIG, gguf_files, is_checkpoint, small_files, weight_files
from mdi.hub.transfer import Transfer
from mdi.model.checkpoint import INDEX, SINGLE
from mdi.model.config import ModelConfig
from mdi.model.fields import Fields
from mdi.model.gptq_awq import OLD_CONFIG, Coding

MARGIN_BYTES = 256 << 20  # left free beside what is downloaded: other programs write too, and a full disk stops the system
TOLD_BYTES = 1 << 20  # between two reports: some ten a second on a home's line


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """`bytes_done` of `n_bytes` are here, and `files_done` files whole. `waiting`: why nothing comes just now."""

    files_done: int
    files: int
    bytes_done: int
    n_bytes: int
    waiting: str | None = None


OnDownload = Callable[[DownloadProgress], None]


class _Meter:
    """Counts for the user."""

    def __init__(self, on_download: OnDownload) -> None:
        self._tell = on_download
        self.files = self.files_done = self.n_bytes = self.bytes_done = self._told_bytes = 0

    def expect(self, files: list[RemoteFile]) -> None:
        self.files, self.n_bytes = len(files), sum(file.n_bytes for file in files)
        self.say()

    def add(self, n_bytes: int) -> None:
        self.bytes_done += n_bytes
        if abs(self.bytes_done - self._told_bytes) >= TOLD_BYTES:
            self.say()

    def finished(self) -> None:
        self.files_done += 1
        self.say()

    def say(self, waiting: str | None = None) -> None:
        self._told_bytes = self.bytes_done
        self._tell(DownloadProgress(self.files_done, self.files, self.bytes_done, self.n_bytes, waiting))


@dataclass(frozen=True, slots=True)
class Wanted:
    """The files of a model, small ones first, and the content of those that were read to know it."""

    files: list[RemoteFile]
    texts: dict[str, bytes]


def obtain(reference: Reference, cache: HubCache, on_download: OnDownload, *, offline: bool, weights: bool = True) -> Path:
    """Where a model lies for `mdi.model.source.resolve`: as it is here if it is whole, and without asking the hub; else downloaded.

    `weights` False: of a safetensors checkpoint at least all else. Raises what `pull` does, and ModelError offline.
    """
    found = cache.find(reference)
    if found is not None:
        return found
    if offline:
        raise not_here(reference)
    with Hub.opened() as hub:
        return pull(reference, hub, cache, on_download, weights=weights)


def not_here(reference: Reference) -> ModelError:
    return ModelError(
        f"{reference} is not on this device, or not all of it, and nothing may be downloaded now",
        hint=f"with a connection: mdi models pull {reference}; mdi models list --here shows what is here",
    )


def pull(
    reference: Reference,
    hub: Hub,
    cache: HubCache,
    on_download: OnDownload,
    *,
    weights: bool = True,
    verify: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The newest state of a revision, as `obtain`. What is here already is not downloaded again; `verify`: if its hash is right.

    Raises ModelError for a model that cannot be run or is not given to this user, UserError for a disk without room,
    HubError when the hub or the way to it fails for too long.
    """
    meter = _Meter(on_download)
    first, pace = Pace(sleep, meter.say, FIRST_TRIES), Pace(sleep, meter.say, TRIES)
    listing = first.persist(lambda: hub.listing(reference))
    wanted = choose(reference, listing, lambda file: first.persist(lambda: hub.text(listing, file)), weights=weights)
    try:
        if verify:
            _drop_damaged(cache, listing, wanted.files)
        missing = [file for file in wanted.files if not cache.holds(listing.repository, listing.commit, file)]
        _check_room(reference, cache, listing, missing)
        meter.expect(wanted.files)
        transfer = Transfer(hub, cache, listing, pace, meter.add)
        for file in wanted.files:
            if file in missing:
                _seed(cache, listing, file, wanted.texts)
                transfer.bring(file)
            else:
                meter.add(file.n_bytes)
            meter.finished()
        if weights:  # a revision of which only the small files are here is not one that was downloaded
            cache.set_ref(listing.repository, reference.revision, listing.commit)
    except OSError as error:
        raise explain(error, cache.root) from error
    snapshot = cache.snapshot(listing.repository, listing.commit)
    first_part = wanted.files[0].path
    return snapshot / first_part if first_part.endswith(".gguf") else snapshot


def choose(reference: Reference, listing: Listing, read: Callable[[RemoteFile], bytes], *, weights: bool) -> Wanted:
    """What to download, by the listing and what `read` brings. Raises ModelError for a model that could not be run."""
    if reference.file is not None or not is_checkpoint(listing):
        files = gguf_files(listing, reference)
        if not weights:
            raise _needs_weights(reference)
        return Wanted(files, {})
    small = small_files(listing)
    texts = {CONFIG: read(listing.files[CONFIG])}
    origin = f"{CONFIG} of {listing.repository}"
    fields = Fields.parse(texts[CONFIG], origin)
    ModelConfig.from_hf(fields.values, origin)
    if not weights:
        if OLD_CONFIG in listing.files or Coding.of_config(fields) is not None:
            raise _needs_weights(reference)
        return Wanted(small, texts)
    index = None
    if SINGLE not in listing.files:
        texts[INDEX] = read(listing.files[INDEX])
        index = Fields.parse(texts[INDEX], f"{INDEX} of {listing.repository}")
    return Wanted([*small, *weight_files(listing, index)], texts)


def _needs_weights(reference: Reference) -> ModelError:
    return ModelError(
        f"{reference} is quantised: only its weights tell what they take", hint=f"type first: mdi models pull {reference}"
    )


def _check_room(reference: Reference, cache: HubCache, listing: Listing, missing: list[RemoteFile]) -> None:
    """Raises UserError when what is still to come does not fit the disk."""
    coming = [file for file in missing if size_of(cache.blob(listing.repository, file)) != file.n_bytes]
    begun = sum(min(size_of(cache.partial(listing.repository, file)) or 0, file.n_bytes) for file in coming)
    needed, free = sum(file.n_bytes for file in coming) - begun, cache.free_bytes()
    if coming and needed + MARGIN_BYTES > free:
        raise no_room(str(reference), needed, free, cache.root)


def no_room(model: str, needed_bytes: int, free_bytes: int, root: Path) -> MdiError:
    return UserError(
        f"{model} needs {needed_bytes / 1e9:.2f} GB more, and some {MARGIN_BYTES / 1e9:.2f} GB to spare, but the disk of {root} has "
        f"{free_bytes / 1e9:.2f} GB free",
        hint="make room (mdi models list --here, mdi models rm NAME), or point HF_HOME at a larger disk",
    )


def _seed(cache: HubCache, listing: Listing, file: RemoteFile, texts: dict[str, bytes]) -> None:
    """What was read already need not come again: it lies where a download would go on, and is checked there."""
    data = texts.get(file.path)
    if data is not None:
        with cache.lock(listing.repository, file):
            partial = cache.partial(listing.repository, file)
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)


def _drop_damaged(cache: HubCache, listing: Listing, files: list[RemoteFile]) -> None:
    """Deletes what is here with a wrong hash, so that it counts as missing."""
    for file in files:
        pointer, blob = cache.snapshot(listing.repository, listing.commit) / file.path, cache.blob(listing.repository, file)
        path = pointer if pointer.is_file() else blob
        if not path.is_file():
            continue
        hasher = file.hasher()
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                hasher.update(chunk)
        if hasher.hexdigest() != file.digest:
            pointer.unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
