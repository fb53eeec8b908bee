"""Uploads as a node receives them: whole, verified, and beside everything else that the loop does."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mdi.errors import MdiError, ModelError, NoRoom, PeerError
from mdi.model.packs import PackRef, PackWriter
from mdi.node import packs
from mdi.node.packs import PackStore

DATA = bytes(range(256)) * 40
REF = PackRef(hashlib.sha256(DATA).hexdigest(), len(DATA))
DEADLINE_S = 10.0


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 4096):
        yield data[start : start + 4096]


@pytest.fixture
def store(tmp_path: Path) -> PackStore:
    return PackStore(tmp_path / "packs")


async def test_an_upload_is_there_under_its_hash(store: PackStore) -> None:
    assert store.missing([REF]) == [REF]
    await store.receive(REF, pieces(DATA))
    assert store.missing([REF]) == []
    assert [path.read_bytes() for path in store.directory.iterdir()] == [DATA]


@pytest.mark.parametrize(
    ("data", "kind"), [(DATA[:-1], ModelError), (DATA + b"x", PeerError), (b"x" + DATA[1:], ModelError), (b"", MdiError)]
)
async def test_an_upload_that_is_not_what_was_announced_leaves_nothing(
    store: PackStore, data: bytes, kind: type[MdiError]
) -> None:
    with pytest.raises(kind):
        await store.receive(REF, pieces(data))
    assert list(store.directory.iterdir()) == []


async def test_an_upload_that_breaks_off_leaves_nothing(store: PackStore) -> None:
    started = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield DATA[:4096]
        started.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(store.receive(REF, stalling()))
    await asyncio.wait_for(started.wait(), DEADLINE_S)
    assert len(list(store.directory.iterdir())) == 1
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert list(store.directory.iterdir()) == []


async def test_a_disk_that_fails_is_a_sentence_and_leaves_nothing(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(NoRoom, match=f"{REF.sha256[:12]} cannot be written: No space left"):
        await store.receive(REF, pieces(DATA))
    assert list(store.directory.iterdir()) == []


async def test_a_disk_that_is_too_full_is_refused_before_anything_is_written(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(NoRoom, match="does not fit the disk"):
        await store.receive(REF, pieces(DATA))
    assert list(store.directory.iterdir()) == []


async def test_the_loop_goes_on_while_a_slow_disk_syncs(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    syncing, gate = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        syncing.set()
        assert gate.wait(DEADLINE_S)

    monkeypatch.setattr(os, "fsync", slow)
    upload = asyncio.create_task(store.receive(REF, pieces(DATA)))
    assert await asyncio.to_thread(syncing.wait, DEADLINE_S)  # only a loop that goes on gets here before the sync ends
    assert not upload.done()
    gate.set()
    await upload
    assert store.missing([REF]) == []


async def test_what_a_killed_node_left_is_cleared_away_and_nothing_else(store: PackStore) -> None:
    await store.receive(REF, pieces(DATA))
    old, new = PackWriter(store.directory), PackWriter(store.directory)
    first, second = sorted(store.directory.glob(".partial-*"))
    for path in (store.path(REF), first):
        os.utime(path, (0, 0))
    store.clear_broken_off()
    assert set(store.directory.iterdir()) == {store.path(REF), second}
    for writer in (old, new):
        writer.__exit__()
