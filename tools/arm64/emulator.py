"""A Debian for arm64 in a directory, and qemu's user emulation that runs its programs as a given Arm core would."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import UserError

MIRROR = os.environ.get("MDI_DEBIAN_MIRROR", "http://deb.debian.org/debian")
RELEASE = "bookworm"
# bookworm's own qemu (7.2) crashes when onnxruntime is imported.
QEMU_RELEASE = "bookworm-backports"
PACKAGES = "python3,libstdc++6,libgomp1"
BOOTSTRAP_TIMEOUT_S = 900.0
FETCH_TIMEOUT_S = 120.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# qemu-user (10.0) answers ENOTTY to SIOCETHTOOL, by which psutil asks for an interface's duplex. Nobody reads it here.
SHIM = """
import psutil._psutil_linux as system
system.net_if_duplex_speed = lambda name: (0, 0)
"""


class Unobtainable(UserError):
    """This machine cannot have the emulator; nothing was checked."""


@dataclass(frozen=True, slots=True)
class Emulator:
    """`root` is the system whose programs and libraries run, `site` the unpacked wheels."""

    qemu: Path
    root: Path
    site: Path

    def command(self, cpu: str, environment: dict[str, str], *arguments: str) -> list[str]:
        """Python of the system, emulated on `cpu`. One BLAS thread: more deadlock under emulation."""
        given = {"PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1", **environment}
        settings = [word for name, value in given.items() for word in ("-E", f"{name}={value}")]
        python = self.root / "usr/bin/python3.11"
        return [str(self.qemu), "-cpu", cpu, "-L", str(self.root), *settings, str(python), *arguments]


def obtain(cache: Path, site: Path) -> Emulator:
    """Download and unpack what is missing in `cache`. Raises Unobtainable, naming what this machine lacks."""
    qemu, root = cache / "qemu", cache / "root"
    if not (qemu / "usr/bin/qemu-aarch64").exists():
        _unpack_qemu(qemu)
    if not (root / "usr/bin/python3.11").exists():
        _unpack_system(root, cache / "bootstrap")
    (site / "sitecustomize.py").write_text(SHIM)
    return Emulator(qemu / "usr/bin/qemu-aarch64", root, site)


def _unpack_qemu(into: Path) -> None:
    needs("dpkg")
    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    index = lzma.decompress(_fetch(f"{MIRROR}/dists/{QEMU_RELEASE}/main/binary-{architecture}/Packages.xz")).decode()
    entry = next((each for each in index.split("\n\n") if each.startswith("Package: qemu-user\n")), None)
    if entry is None:
        raise Unobtainable(f"{QEMU_RELEASE} has no qemu-user for {architecture}")
    fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" "))
    data = _fetch(f"{MIRROR}/{fields['Filename']}")
    if hashlib.sha256(data).hexdigest() != fields["SHA256"]:
        raise Unobtainable(f"{fields['Filename']} is not what the mirror's index says")
    into.mkdir(parents=True, exist_ok=True)
    package = into / "qemu-user.deb"
    package.write_bytes(data)
    subprocess.run(["dpkg", "-x", str(package), str(into)], check=True)
    package.unlink()


def _unpack_system(root: Path, bootstrap: Path) -> None:
    """debootstrap's first stage fetches and verifies the packages; unpacked, they need no configuring for Python to run."""
    needs("debootstrap")
    if os.geteuid() != 0:
        raise Unobtainable("only root may run debootstrap", hint="sudo make test-arm64")
    shutil.rmtree(bootstrap, ignore_errors=True)
    command = ["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", f"--include={PACKAGES}", RELEASE]
    environment = {"PATH": PATH, "LANG": "C.UTF-8"}
    done = subprocess.run(
        [*command, str(bootstrap), MIRROR], capture_output=True, text=True, timeout=BOOTSTRAP_TIMEOUT_S, env=environment
    )
    if done.returncode != 0:
        raise Unobtainable(f"debootstrap failed: {done.stdout[-300:]}{done.stderr[-300:]}")
    partial = root.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for package in sorted((bootstrap / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(partial)], check=True)
    partial.rename(root)
    shutil.rmtree(bootstrap)


def needs(program: str) -> None:
    if shutil.which(program, path=f"{os.environ['PATH']}:{PATH}") is None:
        raise Unobtainable(f"{program} is not here", hint=f"apt-get install {program}")


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_S) as answer:
            data: bytes = answer.read()
            return data
    except OSError as error:
        raise Unobtainable(f"{url} does not answer: {error}", hint="MDI_DEBIAN_MIRROR names another mirror") from error
