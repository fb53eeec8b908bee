"""`mdi node profile` on a device whose daemon runs."""

from __future__ import annotations

import json

from mdi.pipeline.own import own_info
from tests.cli.programs import mdi
from tests.cluster.conftest import House


async def test_a_device_is_measured_as_its_daemon_computes_and_offers_what_that_may_give(house: House) -> None:
    one = house.start("one", "--max-memory", "300MiB")
    info = await own_info(one.home)
    assert info is not None
    assert (info.name, info.threads) == ("one", 1)
    done = mdi(one.home, "node", "profile", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["device"]["threads"] == 1
    assert found["memory"]["offered_bytes"] == 300 << 20
    one.end()
    house.daemons.clear()
    assert await own_info(one.home) is None
