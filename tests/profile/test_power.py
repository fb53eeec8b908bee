"""The power source, against what psutil answers on systems that we do not have."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from mdi.profile.power import on_battery


@pytest.mark.parametrize(
    ("battery", "answer"),
    [
        (None, False),
        (SimpleNamespace(percent=80, power_plugged=True), False),
        (SimpleNamespace(percent=80, power_plugged=None), False),
        (SimpleNamespace(percent=80, power_plugged=False), True),
    ],
)
def test_only_a_system_that_says_so_runs_on_its_battery(monkeypatch: pytest.MonkeyPatch, battery, answer) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert on_battery() is answer


def test_a_system_without_the_sensor_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert on_battery() is False


def test_a_broken_driver_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no such device")

    monkeypatch.setattr(psutil, "sensors_battery", broken, raising=False)
    assert on_battery() is False
