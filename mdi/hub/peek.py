"""A model's shape without its weights: of each safetensors file only the header is asked for, so that it can be inspected."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mdi.errors import HubError, ModelError
from mdi.hub.cache import explain
from mdi.hub.client import Hub
from mdi.hub.files import Listing, RemoteFile
from mdi.hub.pace import FIRST_TRIES, Pace
from mdi.hub.pull import choose
from mdi.hub.reference import Reference
from mdi.model.gptq_awq import OLD_CONFIG
from mdi.model.shards import MAX_HEADER_BYTES

GUESSED_HEADER_BYTES = 256 << 10  # asked for at first: headers of 100 to 1000 tensors have 10 to 100 KiB
LENGTH_BYTES = 8  # of the header's length, which stands in front of it


@contextmanager
def peeked(
    reference: Reference, hub: Hub, on_wait: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> Iterator[Path]:
    """A directory that opens as the checkpoint, until the context ends: real config and headers, and no values (all zero, on no disk).

    Whether a head that is stored twice is the same as the embedding cannot be seen, and is believed. Headers alone cannot be verified
    by a hash: this is to look at, not to run. Raises what `pull` does, and ModelError for GGUF files.
    """
    pace = Pace(sleep, on_wait, FIRST_TRIES)
    listing = pace.persist(lambda: hub.listing(reference))
    wanted = choose(reference, listing, lambda file: pace.persist(lambda: hub.text(listing, file)), weights=True)
    if wanted.files[0].path.endswith(".gguf"):
        raise ModelError(f"{reference} is not on this device", hint=f"type first: mdi models pull {reference}")
    with tempfile.TemporaryDirectory(prefix="mdi-peek-") as temporary:
        directory = Path(temporary) / reference.repository.rpartition("/")[2]
        try:
            directory.mkdir()
            for name, data in wanted.texts.items():
                (directory / name).write_bytes(data)
            for file in wanted.files:
                if file.path.endswith(".safetensors"):
                    header = pace.persist(partial(_header, hub, listing, file))
                    _write_sparse(directory / file.path, header, file.n_bytes)
                elif file.path == OLD_CONFIG:  # else a GPTQ checkpoint would look as if it lacked its weights
                    (directory / file.path).write_bytes(pace.persist(partial(hub.text, listing, file)))
        except OSError as error:
            raise explain(error, directory) from error
        yield directory


def _header(hub: Hub, listing: Listing, file: RemoteFile) -> bytes:
    """The length and the header of a safetensors file."""
    data = _beginning(hub, listing, file, min(GUESSED_HEADER_BYTES, file.n_bytes))
    stop = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    if stop > min(file.n_bytes, LENGTH_BYTES + MAX_HEADER_BYTES):
        raise HubError(f"{file.path} of {listing.repository} is not a safetensors file")
    return data[:stop] if stop <= len(data) else _beginning(hub, listing, file, stop)


def _beginning(hub: Hub, listing: Listing, file: RemoteFile, n_bytes: int) -> bytes:
    data = bytearray()
    with hub.content(listing, file, 0, n_bytes) as response:
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= n_bytes:  # a server that knows no ranges would send all of it
                break
    if len(data) < n_bytes:
        raise HubError(f"{file.path} of {listing.repository} ends before byte {n_bytes}", hint="try again")
    return bytes(data[:n_bytes])


def _write_sparse(path: Path, beginning: bytes, n_bytes: int) -> None:
    path.write_bytes(beginning)
    os.truncate(path, n_bytes)
