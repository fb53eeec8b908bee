"""One file from the hub to its place in the cache: resumed where it was cut, and in place only when its hash is right."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from mdi.errors import HubError
from mdi.hub.cache import HubCache, size_of
from mdi.hub.client import CHUNK_BYTES, Hub
from mdi.hub.files import Listing, RemoteFile
from mdi.hub.pace import Interruption, Pace

WRONG_TRIES = 2  # whole downloads of a file with a wrong hash: the first may have gone on from another program's leavings
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _Growing:
    """The unfinished file, and the hash of what it holds. What is there is hashed when it is opened."""

    def __init__(self, path: Path, file: RemoteFile, on_bytes: Callable[[int], None]) -> None:
        """`on_bytes` is told how many bytes more there are; fewer, when it has to start over."""
        self._file = file
        self._on_bytes = on_bytes
        self._stream = path.open("r+b" if path.exists() else "w+b", buffering=0)  # what came must survive a kill
        self._hasher = file.hasher()
        self.n_bytes = 0
        while chunk := self._stream.read(CHUNK_BYTES):
            self._count(chunk)
            if self.n_bytes > file.n_bytes:
                self.restart()

    def _count(self, chunk: bytes) -> None:
        self._hasher.update(chunk)
        self.n_bytes += len(chunk)
        self._on_bytes(len(chunk))

    def write(self, chunk: bytes) -> None:
        """Raises HubError for more bytes than the file has, OSError when the disk is full."""
        if self.n_bytes + len(chunk) > self._file.n_bytes:
            raise HubError(f"more bytes came for {self._file.path} than the {self._file.n_bytes} that the hub lists")
        rest = memoryview(chunk)
        while rest:  # the last block of a full disk takes a part
            rest = rest[self._stream.write(rest) :]
        self._count(chunk)

    def restart(self) -> None:
        self._stream.seek(0)
        self._stream.truncate()
        self._on_bytes(-self.n_bytes)
        self.n_bytes = 0
        self._hasher = self._file.hasher()

    @property
    def complete(self) -> bool:
        return self.n_bytes == self._file.n_bytes

    @property
    def right(self) -> bool:
        return self._hasher.hexdigest() == self._file.digest

    def sync(self) -> None:
        """To the disk: a name must not outlive its content when the power fails."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Transfer:
    """Brings files of one listing. `on_bytes` is told of every byte that is there, found or brought."""

    hub: Hub
    cache: HubCache
    listing: Listing
    pace: Pace
    on_bytes: Callable[[int], None]

    def bring(self, file: RemoteFile) -> None:
        """Afterwards the listing's commit has the file. Raises HubError, ModelError, and OSError for what the disk refuses.

        Whatever ends it, Ctrl-C and a power cut among it, what has come lies in the `.incomplete` file, and the next call goes on there.
        """
        repository, commit = self.listing.repository, self.listing.commit
        blob, partial = self.cache.blob(repository, file), self.cache.partial(repository, file)
        with self.cache.lock(repository, file):
            blob.parent.mkdir(parents=True, exist_ok=True)
            if size_of(blob) == file.n_bytes:
                self.on_bytes(file.n_bytes)
            else:
                with _Growing(partial, file, self.on_bytes) as growing:
                    self._fill(file, growing)
                    growing.sync()
                partial.replace(blob)
            self.cache.link(repository, commit, file)

    def _fill(self, file: RemoteFile, growing: _Growing) -> None:
        for _ in range(WRONG_TRIES):
            while not growing.complete:
                self.pace.persist(lambda: self._append(file, growing))
            if growing.right:
                return
            growing.restart()
        raise HubError(
            f"{file.path} of {self.listing.repository} came with another content than the hub lists, {WRONG_TRIES} times",
            hint=f"a proxy or mirror changes it: {self.hub.endpoint}; HF_ENDPOINT names another",
        )

    def _append(self, file: RemoteFile, growing: _Growing) -> None:
        """One request for what is missing. Raises Interruption when not all of it came."""
        with self.hub.content(self.listing, file, growing.n_bytes) as response:
            if not _continues(response, file, growing.n_bytes):
                growing.restart()
            for chunk in response.iter_bytes():  # as they come: larger ones would be gathered, and lost with a cut
                growing.write(chunk)
                self.pace.progressed()
        if not growing.complete:
            raise Interruption(f"the connection ended {file.n_bytes - growing.n_bytes} bytes before the end of {file.path}")


def _continues(response: httpx2.Response, file: RemoteFile, start: int) -> bool:
    """Whether the bytes that follow begin at `start`, or at 0. Raises HubError when they are of a file of another size."""
    if response.status_code == httpx2.codes.PARTIAL_CONTENT:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise HubError(f"the hub sends another part of {file.path} than was asked for")
        total = match[2]
    else:
        encoded = "Content-Encoding" in response.headers
        total = "*" if encoded else response.headers.get("Content-Length", "*")
    if total.isdigit() and int(total) != file.n_bytes:
        raise HubError(
            f"{file.path} has {file.n_bytes} bytes by the hub's list, but {total} are sent", hint="start again, or later"
        )
    return response.status_code == httpx2.codes.PARTIAL_CONTENT
