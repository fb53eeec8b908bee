"""What the system's files say, on boards, laptops and virtual machines."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mdi.profile import condition
from mdi.profile.condition import LOADED_SHARE, Condition, Load, LoadWatch, Power, power, throttling


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def supply(root: Path, name: str, **files: str) -> None:
    for file, text in files.items():
        write(root / "sys/class/power_supply" / name / file, text + "\n")


def test_a_virtual_machine_tells_nothing(tmp_path: Path) -> None:
    assert Condition.now(tmp_path) == Condition(None, None, None)


def test_a_pi_says_what_slows_it_now_and_not_what_once_did(tmp_path: Path) -> None:
    flags = tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    write(flags, "50000\n")  # once: under-voltage and throttled
    assert throttling(tmp_path) == ()
    write(flags, "50005\n")
    assert throttling(tmp_path) == ("under-voltage", "throttled")


def test_cooling_that_slows_the_processor_counts_and_a_fan_does_not(tmp_path: Path) -> None:
    thermal = tmp_path / "sys/class/thermal"
    write(thermal / "cooling_device0/type", "pwm-fan\n")
    write(thermal / "cooling_device0/cur_state", "3\n")
    assert throttling(tmp_path) is None
    for i in (1, 2):
        write(thermal / f"cooling_device{i}/type", "Processor\n")
        write(thermal / f"cooling_device{i}/cur_state", "0\n")
    assert throttling(tmp_path) == ()
    for i in (1, 2):
        write(thermal / f"cooling_device{i}/cur_state", "2\n")
    assert throttling(tmp_path) == ("cooling by slowing down",)


def test_a_frequency_below_what_the_processor_can_is_named_once(tmp_path: Path) -> None:
    for i in range(2):
        policy = tmp_path / f"sys/devices/system/cpu/cpufreq/policy{i}"
        write(policy / "cpuinfo_max_freq", "2000000\n")
        write(policy / "scaling_max_freq", "2000000\n")
    assert throttling(tmp_path) == ()
    write(tmp_path / "sys/devices/system/cpu/cpufreq/policy1/scaling_max_freq", "1500000\n")
    assert throttling(tmp_path) == ("frequency limited to 75%",)


def test_the_temperature_is_that_of_the_hottest_zone(tmp_path: Path) -> None:
    write(tmp_path / "sys/class/thermal/thermal_zone0/temp", "41500\n")
    write(tmp_path / "sys/class/thermal/thermal_zone1/temp", "63000\n")
    assert Condition.now(tmp_path).temperature_c == 63.0


def test_a_laptop_runs_on_its_battery_or_not(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    assert power(tmp_path) == Power(False, None)
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="80")
    supply(tmp_path, "BAT1", type="Battery", status="Unknown", capacity="60")
    assert power(tmp_path) == Power(True, pytest.approx(0.7))
    supply(tmp_path, "BAT0", status="Charging")
    assert power(tmp_path) == Power(False, pytest.approx(0.7))


@pytest.mark.parametrize(
    ("told", "source"),
    [
        (None, None),
        (SimpleNamespace(percent=80, power_plugged=True), Power(False, 0.8)),
        (SimpleNamespace(percent=80, power_plugged=None), None),
        (SimpleNamespace(percent=80, power_plugged=False), Power(True, 0.8)),
        (OSError("no such device"), None),
    ],
)
def test_systems_without_such_files_ask_psutil(monkeypatch: pytest.MonkeyPatch, told: object, source: Power | None) -> None:
    def sensors_battery() -> object:
        if isinstance(told, OSError):
            raise told
        return told

    monkeypatch.setattr(psutil, "sensors_battery", sensors_battery, raising=False)
    assert condition._of_psutil() == source


def test_a_system_that_has_no_such_sensor_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert condition._of_psutil() is None


def test_the_battery_of_a_mouse_is_not_the_devices(tmp_path: Path) -> None:
    supply(tmp_path, "hidpp_battery_0", type="Battery", scope="Device", status="Discharging", capacity="5")
    assert power(tmp_path) is None


def test_own_work_is_no_load_and_that_of_others_is() -> None:
    burn = "import time, sys\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            watch, own_s = LoadWatch(), time.process_time()
            while time.process_time() - own_s < 0.3:
                pass
            load = watch.load()
        finally:
            other.kill()
    # Of the time in which we computed for 0.3 s, the other took its share of the same processors.
    assert load.others_share > 0.5 / (os.cpu_count() or 1) * 0.5
    assert 0 <= load.stolen_share <= 1
    assert load.per_minute >= 0


def test_a_load_is_judged_by_both_shares() -> None:
    assert not Load(LOADED_SHARE / 2, 0.0, 9.0).loaded
    assert Load(2 * LOADED_SHARE, 0.0, 0.0).loaded
    assert Load(0.0, 0.1, 0.0).loaded


@pytest.mark.parametrize(
    ("version", "membership", "file"),
    [
        (2, "0::/house/pi\n", "sys/fs/cgroup/house/pi/cpu.stat"),
        (1, "4:memory:/x\n2:cpu,cpuacct:/house/pi\n", "sys/fs/cgroup/cpu/house/pi/cpu.stat"),
    ],
)
def test_the_time_that_a_quota_withheld_counts_as_stolen(tmp_path: Path, version: int, membership: str, file: str) -> None:
    name, unit = ("throttled_usec", 10**6) if version == 2 else ("throttled_time", 10**9)
    write(tmp_path / "proc/self/cgroup", membership)
    write(tmp_path / file, f"nr_throttled 3\n{name} {5 * unit}\n")
    watch = LoadWatch(tmp_path)
    write(tmp_path / file, f"nr_throttled 9\n{name} {500_000 * unit}\n")
    deadline_s = time.monotonic() + 5
    while (load := watch.load()).stolen_share == 0 and time.monotonic() < deadline_s:
        pass  # until the clock of the processors' times has ticked
    assert load.stolen_share == 1.0
    assert load.loaded
