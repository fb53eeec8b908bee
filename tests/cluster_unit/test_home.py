from __future__ import annotations

import errno
import multiprocessing
import os
import stat
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from mdi.cluster.home import Home, RunningNode
from mdi.cluster.private_files import MAX_PRIVATE_BYTES, read_private, write_private
from mdi.errors import UserError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_home_lies_where_the_environment_says(tmp_path: Path) -> None:
    home = Home.open({"MDI_HOME": str(tmp_path / "a" / "b")})
    assert home.path == tmp_path / "a" / "b"
    assert home.key_path == home.path / "cluster.key"
    assert home.packs_path.is_dir()
    assert mode(home.path) == mode(home.packs_path) == mode(home.profiles_path) == 0o700
    moved = Home.open({"MDI_HOME": str(tmp_path), "MDI_CLUSTER_KEY_FILE": str(tmp_path / "credential")})
    assert moved.key_path == tmp_path / "credential"


def test_a_home_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UserError, match="everybody") as refused:
        Home(tmp_path).create()
    assert refused.value.hint == f"chmod 700 {tmp_path}"


def test_a_home_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        Home(tmp_path / "file" / "home").create()


def test_secrets_are_written_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    old_umask = os.umask(0)
    try:
        assert write_private(path, b"one")
    finally:
        os.umask(old_umask)
    assert mode(path) == 0o600
    assert not write_private(path, b"two", replace=False)
    assert read_private(path) == b"one"
    assert write_private(path, b"three")
    assert read_private(path) == b"three"
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


def test_a_full_disk_leaves_the_old_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    write_private(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_private(path, b"new")
    assert read_private(path) == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("wide", [0o640, 0o604, 0o622, 0o777])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, wide: int) -> None:
    path = tmp_path / "secret"
    write_private(path, b"x")
    path.chmod(wide)
    with pytest.raises(UserError, match=f"mode {wide:04o}") as refused:
        read_private(path)
    assert refused.value.hint == f"chmod 600 {path}"
    path.chmod(0o400)
    assert read_private(path) == b"x"


def test_reading_has_a_bound(tmp_path: Path) -> None:
    assert read_private(tmp_path / "missing") is None
    write_private(tmp_path / "big", bytes(MAX_PRIVATE_BYTES + 1))
    with pytest.raises(UserError, match="larger"):
        read_private(tmp_path / "big")


def node(pid: int) -> RunningNode:
    return RunningNode(pid=pid, port=52700, name="pi", node_id="0" * 32, started_s=12.5)


def test_one_daemon_per_home(home: Home) -> None:
    assert home.running() is None
    with home.lock():
        assert home.running() is None
        home.write_running(node(os.getpid()))
        assert home.running() == node(os.getpid())
        with pytest.raises(UserError, match=f"process {os.getpid()}"), home.lock():
            pass
        assert home.running() == node(os.getpid())
    assert home.running() is None
    with home.lock():
        home.clear_running()
        home.clear_running()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"pid": "x"}', b"null", b"\xff"])
def test_a_damaged_node_file_means_nothing(home: Home, content: bytes) -> None:
    with home.lock():
        write_private(home.node_path, content)
        assert home.running() is None


def hold(path: Path, pipe: Connection) -> None:
    home = Home(path)
    with home.lock():
        home.write_running(node(os.getpid()))
        pipe.send(os.getpid())
        pipe.recv()


def test_the_lock_of_a_killed_daemon_is_free(home: Home) -> None:
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=hold, args=(home.path, there))
    process.start()
    try:
        assert here.poll(30)
        pid = here.recv()
        assert home.running() == node(pid)
        with pytest.raises(UserError, match=f"process {pid}"), home.lock():
            pass
    finally:
        process.kill()
        process.join()
        here.close()
        there.close()
    assert home.running() is None
    with home.lock():
        assert home.running() is None  # the killed daemon's file names another process


def test_a_lock_that_cannot_be_read_is_a_sentence(home: Home) -> None:
    """As that of a daemon that root started in this home."""
    home.lock_path.symlink_to(home.lock_path)  # permissions would not stop a test that runs as root
    with pytest.raises(UserError, match=r"lock cannot be read"):
        home.running()
