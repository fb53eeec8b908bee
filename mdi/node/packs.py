"""The packs on a node's disk: what is missing, and how a starter's upload is received and verified."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from mdi.errors import ModelError, NoRoom, PeerError
from mdi.model.packs import PARTIAL_PREFIX, Pack, PackRef, PackWriter, clear_stale, open_pack
from mdi.node.threads import in_thread

MIN_FREE_BYTES = 256 << 20  # left free on the disk, so that a full cache never stops the device's own work


class PackStore:
    """A directory of packs named by their SHA-256."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def clear_broken_off(self) -> None:
        """Removes what uploads left when their process was killed."""
        clear_stale(self.directory, PARTIAL_PREFIX)

    def path(self, ref: PackRef) -> Path:
        return self.directory / ref.filename

    def has(self, ref: PackRef) -> bool:
        """Whether a whole pack of that name and size is there. Its hash was checked when it was written."""
        try:
            return self.path(ref).stat().st_size == ref.n_bytes
        except FileNotFoundError:
            return False

    def missing(self, refs: Iterable[PackRef]) -> list[PackRef]:
        return [ref for ref in refs if not self.has(ref)]

    def open(self, ref: PackRef) -> Pack:
        if not self.has(ref):
            raise ModelError(f"pack {ref.sha256[:12]} is not here", hint="run the command again: it sends what is missing")
        return open_pack(self.path(ref))

    async def receive(self, ref: PackRef, chunks: AsyncIterator[bytes]) -> None:
        """Writes an uploaded pack, whole or not at all.

        Raises NoRoom, before the first byte if the disk is known to be too full, PeerError or ModelError when what came is not it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < ref.n_bytes + MIN_FREE_BYTES:
            raise NoRoom(
                f"a pack of {ref.n_bytes >> 20} MiB does not fit the disk: {free >> 20} MiB are free, {MIN_FREE_BYTES >> 20} of them kept",
                hint="free some room on that device, or leave it out with --split",
            )
        try:
            with PackWriter(self.directory) as writer:
                async for chunk in chunks:
                    if writer.n_bytes + len(chunk) > ref.n_bytes:
                        raise PeerError(f"pack {ref.sha256[:12]} is longer than announced")
                    await in_thread(writer.write, chunk)
                await in_thread(writer.commit, ref)  # its fsync takes seconds on a card: steps of others go on meanwhile
        except OSError as error:
            raise NoRoom(
                f"pack {ref.sha256[:12]} cannot be written: {error.strerror or error}", hint="look at that device's disk"
            ) from error
