from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from mdi.cli.daemons import cluster
from mdi.cluster.key import ClusterKey
from mdi.errors import ClusterError
from mdi.pipeline.survey import list_nodes

HERE = ("--no-discovery", "--host", "127.0.0.1", "--threads", "1")


async def test_the_nodes_of_a_demo_share_a_cluster_and_end_with_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, ("one", "two"), HERE) as (one, two):
        assert ClusterKey.load(one.home) == ClusterKey.load(two.home)
        found = await list_nodes(one.home, (two.address,), discovery=False, wait_s=0.0)
        assert {(row.name, row.reachable) for row in found.rows} == {("one", True), ("two", True)}
    assert not any(psutil.pid_exists(daemon.node.pid) for daemon in (one, two))


async def test_they_end_when_the_demo_is_cancelled(tmp_path: Path) -> None:
    pids: list[int] = []

    async def forever() -> None:
        async with cluster(tmp_path, ("one",), HERE) as daemons:
            pids.extend(daemon.node.pid for daemon in daemons)
            task.cancel()
            await asyncio.Event().wait()

    task = asyncio.create_task(forever())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pids
    assert not psutil.pid_exists(pids[0])


async def test_the_log_of_a_node_that_does_not_start_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="--threads 0 leaves nobody to compute"):
        async with cluster(tmp_path, ("one",), ("--no-discovery", "--threads", "0")):
            pass
