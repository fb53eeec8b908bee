"""In what condition this device is: heat, throttling, power, and what else it is doing. What the system does not tell is None."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from mdi.profile.temperature import THERMAL, temperature_c

ROOT = Path("/")
LOADED_SHARE = 0.10  # of the processors' time; an idle desktop with its programs open stays below 5 %
STOLEN_SHARE = 0.03  # taken by the host of a virtual machine, or by a quota: measurements then vary as much
# The Raspberry Pi's firmware (documentation of `vcgencmd get_throttled`): what holds now. Bits 16 to 19 say that it once did.
PI_FLAGS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
PI_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
COOLING_TYPES = ("Processor", "cpufreq", "thermal-cpufreq")  # cooling devices that slow a processor; fans cool without that


@dataclass(frozen=True, slots=True)
class Power:
    """`on_battery`: whether it runs down one now. `charge` is 0 to 1."""

    on_battery: bool
    charge: float | None


@dataclass(frozen=True, slots=True)
class Condition:
    """`throttling` lists what slows the processors down now; empty when nothing does, None when the system does not tell."""

    temperature_c: float | None
    throttling: tuple[str, ...] | None
    power: Power | None

    @classmethod
    def now(cls, root: Path = ROOT) -> Condition:
        return cls(temperature_c(root / THERMAL.relative_to("/")), throttling(root), power(root))


def throttling(root: Path = ROOT) -> tuple[str, ...] | None:
    """From the Pi's firmware, the kernel's cooling devices and the frequency limits, whichever are there."""
    reasons: list[str] = []
    told = False
    if (text := _text(root / PI_THROTTLED)) is not None:
        told = True
        flags = int(text, 16)
        reasons += [name for bit, name in PI_FLAGS.items() if flags >> bit & 1]
    for directory in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        state = _number(directory / "cur_state")
        if state is not None and (_text(directory / "type") or "").startswith(COOLING_TYPES):
            told = True
            if state > 0 and "cooling by slowing down" not in reasons:
                reasons.append("cooling by slowing down")
    for directory in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*")):
        allowed, possible = _number(directory / "scaling_max_freq"), _number(directory / "cpuinfo_max_freq")
        if allowed is not None and possible is not None:
            told = True
            if allowed < possible and "frequency limited" not in " ".join(reasons):
                reasons.append(f"frequency limited to {allowed / possible:.0%}")
    return tuple(reasons) if told else None


def power(root: Path = ROOT) -> Power | None:
    """None on devices that have neither a battery nor a supply that tells."""
    batteries, mains = [], []
    for directory in sorted((root / "sys/class/power_supply").glob("*")):
        if _text(directory / "scope") == "Device":
            continue  # that of a mouse
        match _text(directory / "type"):
            case "Battery":
                batteries.append((_text(directory / "status"), _number(directory / "capacity")))
            case "Mains" | "USB":
                mains.append(_number(directory / "online"))
    if batteries:
        charges = [charge for _, charge in batteries if charge is not None]
        charge = sum(charges) / len(charges) / 100 if charges else None
        return Power(any(status == "Discharging" for status, _ in batteries), charge)
    if mains:
        return Power(False, None)
    if root == ROOT and (told := _of_psutil()) is not None:
        return told
    return None


def on_battery() -> bool:
    """Whether the system says that this device runs on its battery. Those without one, and systems that do not tell, do not."""
    source = power()
    return source is not None and source.on_battery


@dataclass(frozen=True, slots=True)
class Load:
    """What others took of the processors while something was measured: other programs, and the host or a quota (`stolen_share`)."""

    others_share: float
    stolen_share: float
    per_minute: float  # the system's load average of the last minute, by processor

    @property
    def loaded(self) -> bool:
        return self.others_share > LOADED_SHARE or self.stolen_share > STOLEN_SHARE


class LoadWatch:
    """Counts from its creation on."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._machine = psutil.cpu_times()
        self._own_s = _own_s()
        self._throttled_s = _throttled_s(root)

    def load(self) -> Load:
        machine = psutil.cpu_times()
        passed = {name: getattr(machine, name) - getattr(self._machine, name) for name in machine._fields}
        guests = passed.get("guest", 0.0) + passed.get("guest_nice", 0.0)  # counted in user and nice as well
        total_s = sum(passed.values()) - guests
        stolen_s = passed.get("steal", 0.0)
        idle_s = passed.get("idle", 0.0) + passed.get("iowait", 0.0)
        busy_s = total_s - idle_s - stolen_s
        others_s = max(0.0, busy_s - (_own_s() - self._own_s))
        stolen_s += max(0.0, _throttled_s(self._root) - self._throttled_s)
        per_minute = psutil.getloadavg()[0] / (psutil.cpu_count() or 1)
        if total_s <= 0:  # less than a tick of the clock
            return Load(0.0, 0.0, per_minute)
        return Load(min(1.0, others_s / total_s), min(1.0, stolen_s / total_s), per_minute)


def _own_s() -> float:
    times = os.times()
    return times.user + times.system


def _throttled_s(root: Path) -> float:
    """For how long a CPU quota has held this process's control group up. 0 without one."""
    return sum(
        value / scale
        for path in _cpu_groups(root)
        for name, scale in (("throttled_usec", 1e6), ("throttled_time", 1e9))  # version 2, version 1
        if (value := _field(path / "cpu.stat", name)) is not None
    )


def _cpu_groups(root: Path) -> Iterator[Path]:
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            yield root / "sys/fs/cgroup" / group.lstrip("/")
        elif "cpu" in controllers.split(","):
            yield root / "sys/fs/cgroup/cpu" / group.lstrip("/")


def _of_psutil() -> Power | None:
    """macOS and Windows."""
    sensors = getattr(psutil, "sensors_battery", None)  # missing on some systems
    try:
        sensor = sensors() if sensors is not None else None
    except (OSError, ValueError):  # a broken driver's files
        return None
    if sensor is None or sensor.power_plugged is None:
        return None
    return Power(not sensor.power_plugged, sensor.percent / 100)


def _field(path: Path, name: str) -> int | None:
    for line in (_text(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
