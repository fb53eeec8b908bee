from __future__ import annotations

from pathlib import Path

import pytest

from mdi.errors import InternalError, UserError
from mdi.profile import disk
from mdi.profile.disk import DiskSpeed, measure_disk, room


def test_a_disk_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    speed = measure_disk(tmp_path)
    assert 1e4 < speed.write_bytes_per_s < 1e12
    assert 1e4 < speed.read_bytes_per_s < 1e12
    assert list(tmp_path.iterdir()) == []
    free, total = room(tmp_path)
    assert 0 < free <= total


def test_a_full_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "room", lambda directory: (100 << 20, 1 << 40))
    with pytest.raises(UserError, match="hardly any room"):
        measure_disk(tmp_path)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone cannot be measured"):
        measure_disk(tmp_path / "gone")


@pytest.mark.parametrize("speeds", [(0.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)])
def test_impossible_speeds_are_refused(speeds: tuple[float, float]) -> None:
    with pytest.raises(InternalError):
        DiskSpeed(*speeds)
