"""What the operating system knows about the processor, read from files where there are any."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import psutil

from mdi.profile.memory import UNITS

# Those that change the speed of int4 and int8 kernels, in the words of Linux. `asimddp`: the dot product of a Pi 5; a Pi 4 has none.
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
MACOS_FEATURES = {"asimd": "AdvSIMD", "asimddp": "FEAT_DotProd", "i8mm": "FEAT_I8MM"}
SYSCTL_TIMEOUT_S = 2.0

# "CPU part" of /proc/cpuinfo where "CPU implementer" is 0x41, Arm: the cores of boards that people own.
ARM_PARTS: Mapping[str, str] = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's name; on boards theirs with the cores, such as `Raspberry Pi 5 Model B Rev 1.0 (4x Cortex-A76)`."""
    info = _cpuinfo(root)
    if name := _last(info, "model name"):
        return name
    board = _text(root / "proc/device-tree/model") or _last(info, "Model")
    parts = [ARM_PARTS.get(part) for part in info.get("CPU part", [])]
    counts = {part: parts.count(part) for part in parts if part}
    cores = " + ".join(f"{count}x {part}" for part, count in counts.items())
    if board and cores:
        return f"{board} ({cores})"
    return board or cores or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine() or "unknown"


def cpu_features(root: Path = Path("/")) -> tuple[str, ...]:
    """Those of FEATURES that the processor has, in that order."""
    info = _cpuinfo(root)
    present = set(f"{_last(info, 'flags')} {_last(info, 'Features')}".split())
    if not info:
        present = {name for name, key in MACOS_FEATURES.items() if _sysctl(f"hw.optional.arm.{key}") == "1"}
    return tuple(name for name in FEATURES if name in present)


def usable_cpus() -> frozenset[int]:
    """The logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(psutil.cpu_count() or 1))


def physical_cores(cpus: frozenset[int], root: Path = Path("/")) -> int:
    """How many cores `cpus` are: siblings of one core count once."""
    siblings = {_text(_cpu_directory(root, cpu) / "topology/thread_siblings_list") for cpu in cpus}
    if "" in siblings:
        return min(len(cpus), psutil.cpu_count(logical=False) or len(cpus))
    return len(siblings)


def last_level_cache_bytes(root: Path = Path("/")) -> int:
    """The largest cache of the first processor; 0 when the system does not say."""
    sizes = [_text(path) for path in (_cpu_directory(root, 0) / "cache").glob("index*/size")]
    matches = [re.fullmatch(r"(\d+)([KMG])", size) for size in sizes]
    return max((int(match[1]) << 10 * (UNITS.index(match[2]) + 1) for match in matches if match), default=0)


def _cpu_directory(root: Path, cpu: int) -> Path:
    return root / f"sys/devices/system/cpu/cpu{cpu}"


def _cpuinfo(root: Path) -> dict[str, list[str]]:
    """All values of each key, in the order of the processors."""
    values: dict[str, list[str]] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            values.setdefault(key.strip(), []).append(value.strip())
    return values


def _last(info: Mapping[str, list[str]], key: str) -> str:
    return info.get(key, [""])[-1]


def _text(path: Path) -> str:
    """The file without white space and NUL around it; empty when it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \t\r\n")
    except OSError:
        return ""


@lru_cache(maxsize=16)
def _sysctl(name: str) -> str:
    """macOS's answer; empty elsewhere."""
    if platform.system() != "Darwin":
        return ""
    try:
        command = ["/usr/sbin/sysctl", "-n", name]
        return subprocess.run(command, capture_output=True, text=True, timeout=SYSCTL_TIMEOUT_S, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
