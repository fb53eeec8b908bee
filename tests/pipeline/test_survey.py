"""Looking for nodes leaves nothing behind: no cluster that nobody founded, no task that nobody owns."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.errors import UserError
from mdi.pipeline.survey import list_nodes, open_house


async def test_looking_around_founds_no_cluster(tmp_path: Path) -> None:
    """The first `mdi node start` does, and prints the key; a device that only looked can still join another."""
    home = Home(tmp_path / "home").create()
    found = await list_nodes(home, (), discovery=False, wait_s=0.0)
    assert found.rows == ()
    assert not home.key_path.exists()
    ClusterKey.generate().save(home)


async def test_a_key_file_that_is_named_must_exist(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "elsewhere.key").create()
    with pytest.raises(UserError, match=r"elsewhere\.key"):
        await list_nodes(home, (), discovery=False, wait_s=0.0)


async def test_a_search_that_is_given_up_leaves_no_task(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = f"127.0.0.1:{silent.getsockname()[1]}"
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), open_house(Home(tmp_path).create(), (peer,), discovery=True, wait_s=60.0):
                raise AssertionError("nobody is here")
        assert {task.get_name() for task in asyncio.all_tasks() - before} == set()
