"""The wheels that a Raspberry Pi would install, taken from the package index without one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import UserError

ROOT = Path(__file__).parents[2]
PYTHON = "3.11"  # of Debian 12; 3.13 of Debian 13 has wheels of the same packages
GLIBC_MINOR = 36  # of Debian 12 (2.36): wheels for an older one run too, and pip wants each of them named
OLDEST_GLIBC_MINOR = 17  # manylinux2014
DOWNLOAD_TIMEOUT_S = 900.0
TARGET_BYTES = 250_000_000  # of the base install, without bytecode
# What install.sh removes after installing: tests of packages, which no node runs.
PRUNED = (("numpy", "tests"), ("onnx", "test"))


@dataclass(frozen=True, slots=True)
class Wheel:
    """`installed_bytes` without the packages' own tests."""

    name: str
    download_bytes: int
    installed_bytes: int


def download(into: Path) -> list[Wheel]:
    """The base install's wheels for aarch64, largest first. Raises UserError if a package has none."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    into.mkdir(parents=True, exist_ok=True)
    for old in into.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--dest={into}", *_platforms()]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: No") or "Could not" in line]
        raise UserError(f"the base install does not resolve for aarch64: {errors[-1][:300] if errors else done.stderr[-300:]}")
    return sorted(map(_measured, into.glob("*.whl")), key=lambda wheel: -wheel.installed_bytes)


def own_bytes() -> int:
    """What the package itself takes, with the built-in model."""
    files = (path for path in (ROOT / "mdi").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sum(path.stat().st_size for path in files)


def unpack(wheels: Path, into: Path) -> None:
    """What pip would put into site-packages; scripts are left out."""
    into.mkdir(parents=True, exist_ok=True)
    for path in wheels.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(into)


def _platforms() -> Iterator[str]:
    yield from ("--implementation=cp", f"--python-version={PYTHON}", "--platform=manylinux2014_aarch64")
    for minor in range(GLIBC_MINOR, OLDEST_GLIBC_MINOR - 1, -1):
        yield f"--platform=manylinux_2_{minor}_aarch64"


def _measured(path: Path) -> Wheel:
    with zipfile.ZipFile(path) as archive:
        installed = sum(entry.file_size for entry in archive.infolist() if not is_pruned(entry.filename))
    return Wheel(path.name.split("-")[0], path.stat().st_size, installed)


def is_pruned(name: str) -> bool:
    package, *directories = name.split("/")[:-1] or [""]
    return any(package == owner and tests in directories for owner, tests in PRUNED)
