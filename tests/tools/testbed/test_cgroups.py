from __future__ import annotations

from pathlib import Path

import pytest

from tools.testbed.cgroups import ControlGroups


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    for controller in ("cpu", "memory"):
        (tmp_path / controller).mkdir()
        (tmp_path / controller / "cgroup.procs").touch()
    groups = ControlGroups.detect(tmp_path)
    assert groups == ControlGroups(1, tmp_path, freezes=False)
    assert groups.groups("house", "pi") == (tmp_path / "cpu/mdi-tb.house/pi", tmp_path / "memory/mdi-tb.house/pi")
    assert groups.enabling("house") == []
    assert groups.memory("house", "pi", 1 << 30).path == tmp_path / "memory/mdi-tb.house/pi/memory.limit_in_bytes"
    written = [(write.path.name, write.text) for write in groups.cpu("house", "pi", 0.25)]
    assert written == [("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", "10000"), ("cpu.cfs_quota_us", "2500")]
    assert [write.text for write in groups.cpu("house", "pi", None)] == ["-1", "10000"]


def test_version_1_freezes_where_it_has_a_freezer(tmp_path: Path) -> None:
    for controller in ("cpu", "memory", "freezer"):
        (tmp_path / controller).mkdir()
        (tmp_path / controller / "cgroup.procs").touch()
    groups = ControlGroups.detect(tmp_path)
    assert groups == ControlGroups(1, tmp_path)
    assert groups.groups("house", "pi")[-1] == tmp_path / "freezer/mdi-tb.house/pi"


def test_version_2_hands_its_controllers_down(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    groups = ControlGroups.detect(tmp_path)
    assert groups == ControlGroups(2, tmp_path)
    assert groups.groups("house", "pi") == (tmp_path / "mdi-tb.house/pi",)
    assert [write.path.parent for write in groups.enabling("house")] == [tmp_path, tmp_path / "mdi-tb.house"]
    assert groups.memory("house", "pi", 4096).path == tmp_path / "mdi-tb.house/pi/memory.max"
    assert [(write.path.name, write.text) for write in groups.cpu("house", "pi", 2.0)] == [("cpu.max", "20000 10000")]
    assert [write.text for write in groups.cpu("house", "pi", None)] == ["max 10000"]


def test_a_small_share_gets_a_longer_period(tmp_path: Path) -> None:
    (write,) = ControlGroups(2, tmp_path).cpu("house", "pi", 0.05)
    assert write.text == "1000 20000"


@pytest.mark.parametrize("controllers", [None, "cpu pids", ""])
def test_without_both_controllers_there_are_no_limits(tmp_path: Path, controllers: str | None) -> None:
    if controllers is not None:
        (tmp_path / "cgroup.controllers").write_text(controllers)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cgroup.procs").touch()
    assert ControlGroups.detect(tmp_path) is None
