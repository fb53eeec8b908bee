"""`mdi links` and `mdi node profile`: what they print. Over several devices: tests/tools/testbed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mdi.cli.render_links import links_text
from mdi.cli.render_profile import profile_text
from mdi.cluster.home import Home
from mdi.errors import LinkError
from mdi.model.quantise import WeightFormat
from mdi.node.links import PREFILL_BYTES, Link, LinkTimes
from mdi.pipeline.links import Known
from mdi.pipeline.matrix import Matrix
from mdi.profile.blocks import BlockTimes, HeadTime, LinearTime
from mdi.profile.condition import Condition, Load, Power
from mdi.profile.device import DeviceInfo, DeviceProfile
from mdi.profile.disk import DiskSpeed
from mdi.profile.grid import BlockGrid, BlockPoint
from mdi.profile.whole import Accelerator, Disk, Memory, WholeProfile
from tests.cli.programs import mdi

FAST = LinkTimes(0.0004, 0.0005, PREFILL_BYTES * 8 / 940e6)
SLOW = LinkTimes(0.0004, 0.0005, PREFILL_BYTES * 8 / 47e6)
NODES = (("b", "desk"), ("a", "attic"), ("c", "shed"))


def test_each_sender_has_a_row_and_each_receiver_a_column() -> None:
    link = Known(Link(FAST, SLOW), 0.0)
    text = links_text(Matrix(NODES, {("a", "b"): link, ("a", "c"): link, ("b", "c"): LinkError("no route")}))
    trips, _, prefill = text.split("\n\n")[:3]
    assert trips.splitlines()[0] == "Round trip, ms"
    assert [line.split() for line in prefill.splitlines()[1:]] == [
        ["from", "\\", "to", "desk", "attic", "shed"],
        ["desk", "47", "—"],
        ["attic", "940", "940"],
        ["shed", "—", "47"],
    ]
    assert text.endswith("2 pairs measured just now.")


def test_the_age_of_what_is_remembered_is_shown() -> None:
    matrix = Matrix(NODES[:2], {("a", "b"): Known(Link(FAST, FAST), 1500.0)})
    assert links_text(matrix).endswith("1 pair measured at most 25 min ago; --refresh measures again.")


def test_a_device_alone_has_no_links(home: Home) -> None:
    assert "No other node" in links_text(Matrix(NODES[:1], {}))
    done = mdi(home, "links", "--no-discovery", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["links"] == []


@pytest.fixture
def found() -> WholeProfile:
    return WholeProfile(
        info=DeviceInfo("Raspberry Pi 5", 4, 4, ("asimd", "asimddp"), "Linux", 8 << 30),
        memory=Memory(8 << 30, 6 << 30, 2 << 30),
        accelerator=None,
        device=DeviceProfile(0.12, 11e9, 4, 0.01, 0.01),
        model="toy",
        fmt=WeightFormat(4, 128),
        n_blocks=10,
        blocks=BlockTimes(LinearTime(0.0, 0.01), LinearTime(0.0, 0.1), 128),
        head=HeadTime(0.02),
        grid=BlockGrid(
            (BlockPoint(1, 1, 0, 0.010), BlockPoint(1, 1, 512, 0.011), BlockPoint(8, 1, 0, 0.03)),
            (BlockPoint(1, 128, 0, 0.1),),
        ),
        disk=Disk("/x", 10 << 30, 32 << 30, DiskSpeed(20e6, 80e6)),
        condition=Condition(61.0, ("under-voltage",), Power(True, 0.5)),
        load=Load(0.02, 0.0, 0.1),
        measured=True,
    )


def test_a_profile_is_a_page(found: WholeProfile) -> None:
    text = profile_text(found)
    for part in (
        "Raspberry Pi 5 (asimd asimddp), 4 cores, Linux",
        "memory: 8.0 GiB, of which 6.0 GiB may be taken now and 2.0 GiB would be offered",
        "computes with 4 threads: 0.12 TFLOPS, reads 11 GB/s",
        "disk: 10.0 GiB free, writes 20 MB/s, reads 80 MB/s",
        "Alone it would decode 8.33 tokens/s.",  # 10 blocks of 10 ms and a head of 20
        "temperature 61 °C; slowed by under-voltage; on battery, 50% left",
        "at rest: others took 2% of the processors' time now",
    ):
        assert part in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("decode", "prompt"))]
    assert rows == [
        ["decode,", "1", "conversation", "10.0", "ms", "11.0", "ms"],
        ["decode,", "8", "conversations", "30.0", "ms"],
        ["prompt,", "128", "tokens", "100", "ms"],
    ]


def test_what_the_system_does_not_tell_is_said(found: WholeProfile) -> None:
    text = profile_text(replace(found, condition=Condition(None, None, None)))
    assert "temperature not told; throttling not told; power source not told" in text
    mains = profile_text(replace(found, condition=Condition(None, (), Power(False, None))))
    assert "not throttled; on mains" in mains


def test_a_loaded_device_and_an_accelerator_are_named(found: WholeProfile) -> None:
    gpu = Accelerator("cuda:0", "Some GPU", 80 << 30, 70 << 30)
    text = profile_text(replace(found, load=Load(0.4, 0.0, 2.0), measured=False, accelerator=gpu))
    assert "THIS DEVICE WAS LOADED: others took 40% of the processors' time when this was measured" in text
    assert "cuda:0: Some GPU, 80.0 GiB, 70.0 GiB of it free" in text


def test_the_command_measures_once_and_prints_json(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    first = mdi(home, "node", "profile", "--threads", "1", "--json")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    profile = json.loads(first.stdout)
    assert profile["measured"]
    again = json.loads(mdi(home, "node", "profile", "--threads", "1", "--json").stdout)
    assert not again["measured"]
    assert again["grid"] == profile["grid"]
    wrong = mdi(home, "node", "profile", "--model", "no-such-model")
    assert wrong.returncode == 2
