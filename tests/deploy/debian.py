"""A Debian system in a directory: debootstrap makes it, systemd-nspawn boots it in namespaces of its own, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MIRROR = os.environ.get("MDI_DEBIAN_MIRROR", "http://deb.debian.org/debian")
PACKAGES = ("ca-certificates", "dbus", "iproute2", "python3", "python3-venv", "sudo", "systemd", "systemd-sysv")
BOOTSTRAP_TIMEOUT_S = 900.0
COMMAND_TIMEOUT_S = 600.0  # the base install is 90 MB to download
BOOT_TIMEOUT_S = 90.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def missing() -> str | None:
    """Why no system can be made here; None if one can."""
    if os.geteuid() != 0:
        return "only root makes a Debian system"
    for program in ("debootstrap", "systemd-nspawn", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not here (apt-get install debootstrap systemd-container)"
    try:
        with urllib.request.urlopen(f"{MIRROR}/dists/bookworm/Release", timeout=20):
            return None
    except OSError as error:
        return f"the mirror {MIRROR} does not answer: {error}"


def bootstrap(directory: Path, release: str) -> None:
    """A minimal system of this machine's architecture, that trusts whom this machine trusts and resolves as it does."""
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, str(directory), MIRROR]
    _run(command, BOOTSTRAP_TIMEOUT_S)
    shutil.copy("/etc/resolv.conf", directory / "etc/resolv.conf")
    if HOST_CERTIFICATES.exists():  # a proxy of a company or a laboratory, say, has a certificate of its own
        shutil.copy(HOST_CERTIFICATES, directory / HOST_CERTIFICATES.relative_to("/"))
        (directory / "etc/pip.conf").write_text(f"[global]\ncert = {HOST_CERTIFICATES}\n")


def inside(directory: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run in the system while it is not booted, with this machine's network."""
    mount = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", mount]
    return _run([*isolated, str(directory), *command], COMMAND_TIMEOUT_S, check=check)


@dataclass(frozen=True)
class Machine:
    """A booted system."""

    leader: int  # the process id of its init, seen from here

    def run(self, *command: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "--target", str(self.leader), "--all", "--root", "--wd"]
        return _run([*enter, *command], COMMAND_TIMEOUT_S, check=check, stdin=stdin)

    def wait_for(self, *command: str) -> str:
        """The output of a command as soon as it succeeds."""
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while (done := self.run(*command, check=False)).returncode != 0:
            assert time.monotonic() < deadline, f"{command} did not succeed: {done.stdout}{done.stderr}"
        return done.stdout


@contextmanager
def booted(directory: Path, name: str) -> Iterator[Machine]:
    """Init runs as process 1 of it; it is ended with all its processes."""
    command = ["systemd-nspawn", "--quiet", f"--directory={directory}", "--boot", "--register=no", "--keep-unit"]
    options = ["--private-network", f"--hostname={name}", "--console=pipe"]
    with subprocess.Popen(
        [*command, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            machine = Machine(_leader(process))
            machine.wait_for("systemctl", "is-active", "multi-user.target")
            yield machine
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()  # the system's init: nspawn then ends by itself
            process.wait(30)


def _leader(nspawn: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        assert nspawn.poll() is None, f"systemd-nspawn ended with {nspawn.returncode}"
        for child in psutil.Process(nspawn.pid).children():
            with suppress(psutil.NoSuchProcess):  # nspawn has short-lived children too
                if child.name() == "systemd":
                    return child.pid
    raise AssertionError("the system did not boot")


def _run(command: list[str], timeout_s: float, *, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, env=environment)
    assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done
