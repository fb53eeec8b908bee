"""install.sh in a whole Debian system: `make test-install`. It takes some minutes, downloads 200 MB, and needs root."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdi.cluster.key import ClusterKey
from tests.deploy.debian import Machine, booted, bootstrap, inside, missing

ROOT = Path(__file__).parents[2]
INSTALL = "/usr/src/mdi/deploy/pi/install.sh"
PROBE_UNIT = "/etc/systemd/system/mdi-probe.service"

# In the unit's sandbox: what a node asks of the kernel beside files and sockets of its own.
PROBE = """
import ctypes, mmap, os, psutil
from mdi.cluster.interfaces import read_interfaces
from mdi.engine.huge_pages import Region, resident
from mdi.profile.memory import available_bytes
page = mmap.mmap(-1, mmap.PAGESIZE)
page[0] = 1
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
assert resident(ctypes.CDLL(None), Region(start, start + mmap.PAGESIZE)).tolist() == [True], "mincore"
assert read_interfaces(), "netlink"
assert available_bytes() > 0 and psutil.virtual_memory().total > 0, "/proc and cgroups"
os.sched_setaffinity(0, os.sched_getaffinity(0))
for forbidden in ("/etc/probe", "/opt/mdi/probe", "/etc/mdi/probe", "/root/probe"):
    try:
        open(forbidden, "w")
    except OSError:
        continue
    raise AssertionError(forbidden + " can be written")
print("probe passed")
"""

pytestmark = [pytest.mark.install, pytest.mark.timeout(3600)]
RUNNING = 'grep -q "\\"pid\\": $(systemctl show -P MainPID mdi)," /var/lib/mdi/node.json && cat /var/lib/mdi/node.json'


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A system with the checkout in /usr/src/mdi, and MDI installed from it."""
    if reason := missing():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("debian") / request.param
    bootstrap(directory, request.param)
    source = directory / "usr/src/mdi"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("mdi", "deploy"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = inside(directory, INSTALL)
    assert "On each other device type" in done.stdout
    assert sorted(path.name for path in source.iterdir()) == ["README.md", "deploy", "mdi", "pyproject.toml"]
    yield directory
    shutil.rmtree(directory)


def key_of(system: Path) -> ClusterKey:
    return ClusterKey.parse((system / "etc/mdi/cluster.key").read_text())


def wait_for_node(machine: Machine) -> dict[str, object]:
    """What the daemon of this boot tells about itself; a killed one leaves its file."""
    node: dict[str, object] = json.loads(machine.wait_for("sh", "-c", RUNNING))
    return node


def test_the_node_runs_after_a_boot_without_root_and_without_rights(system: Path) -> None:
    with booted(system, "attic") as machine:
        pid = str(wait_for_node(machine)["pid"])
        status = dict(
            line.split(":\t", 1) for line in machine.run("cat", f"/proc/{pid}/status").stdout.splitlines() if ":\t" in line
        )
        user = machine.run("id", "-u", "mdi").stdout.strip()
        assert status["Uid"].split() == [user] * 4
        assert status["CapBnd"] == status["CapEff"] == "0" * 16
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        journal = machine.run("journalctl", "--unit", "mdi", "--boot").stdout
        assert f"serves cluster {key_of(system).fingerprint}" in journal
        assert key_of(system).text not in journal


def test_a_second_node_finds_it_by_multicast_and_both_compute(system: Path) -> None:
    with booted(system, "attic") as machine:
        wait_for_node(machine)
        second = ("MDI_HOME=/tmp/second", "MDI_CLUSTER_KEY_FILE=/etc/mdi/cluster.key", "HOME=/tmp")
        command = ("/opt/mdi/venv/bin/mdi", "run", "--model", "demo", "--min-nodes", "2", "--json", "--wait", "10")
        as_mdi = ("setpriv", "--reuid=mdi", "--regid=mdi", "--init-groups", "env", *second)
        answer = machine.run(*as_mdi, *command, "--prompt", "What is the capital of France?")
        assert "Paris" in json.loads(answer.stdout)["text"]
        journal = machine.run("journalctl", "--unit", "mdi", "--boot").stdout
        assert "Traceback" not in journal


def test_the_sandbox_allows_what_the_node_asks_of_the_kernel_and_no_more(system: Path) -> None:
    unit = (system / "etc/systemd/system/mdi.service").read_text().splitlines()
    changed = {"Type=": "Type=oneshot", "ExecStart=": "ExecStart=/opt/mdi/venv/bin/python /usr/src/probe.py", "Restart=": ""}
    lines = [next((new for old, new in changed.items() if line.startswith(old)), line) for line in unit]
    (system / PROBE_UNIT[1:]).write_text("\n".join(lines))
    (system / "usr/src/probe.py").write_text(PROBE)
    with booted(system, "attic") as machine:
        machine.run("systemctl", "start", "mdi-probe", check=False)
        assert "probe passed" in machine.run("journalctl", "--unit", "mdi-probe", "--boot").stdout


def test_mdi_typed_by_root_or_by_who_may_use_sudo_is_this_systems_node(system: Path) -> None:
    with booted(system, "attic") as machine:
        node = wait_for_node(machine)
        machine.run("useradd", "--create-home", "pi")
        (system / "etc/sudoers.d/pi").write_text("pi ALL=(ALL) NOPASSWD: ALL\n")  # as Raspberry Pi OS does
        for caller in ((), ("setpriv", "--reuid=pi", "--regid=pi", "--init-groups", "--")):
            rows = json.loads(machine.run(*caller, "mdi", "nodes", "--json").stdout)["nodes"]
            assert [row["node_id"] for row in rows] == [node["node_id"]]
        # From a home that the node's user may not look into.
        asked = "cd ~pi && exec setpriv --reuid=pi --regid=pi --init-groups mdi run --model demo --prompt 'What is 7 + 5?'"
        assert "12" in machine.run("sh", "-c", f"chmod 700 ~pi; {asked}").stdout
        machine.run("mdi", "node", "stop")
        assert machine.run("systemctl", "is-active", "mdi", check=False).stdout.strip() == "inactive"


def test_a_killed_node_comes_back(system: Path) -> None:
    with booted(system, "attic") as machine:
        before = wait_for_node(machine)
        machine.run("systemctl", "kill", "--signal=KILL", "mdi")
        machine.wait_for("sh", "-c", "systemctl show -P NRestarts mdi | grep -qx 1")
        after = wait_for_node(machine)
        assert after["node_id"] == before["node_id"]
        assert after["pid"] != before["pid"]


def test_a_card_brings_settings_and_key_and_a_wrong_one_is_told_on_the_card(system: Path) -> None:
    boot, old, new = system / "boot/firmware", key_of(system), ClusterKey.generate()
    boot.mkdir(parents=True, exist_ok=True)
    (boot / "mdi.toml").write_text('name = "cellar"\nkey_file = "house.key"\nmax_memory = "300MB"\n')
    (boot / "house.key").write_text(new.text)
    with booted(system, "attic") as machine:
        assert wait_for_node(machine)["name"] == "cellar"
        (row,) = json.loads(machine.run("mdi", "nodes", "--json").stdout)["nodes"]
        assert row["memory_offered_bytes"] == 300_000_000
    assert key_of(system) == new != old
    assert [path.name for path in boot.iterdir()] == ["mdi.toml"]
    (boot / "mdi.toml").write_text("threads = 0\n")
    with booted(system, "attic") as machine:
        machine.wait_for("systemctl", "is-failed", "mdi-first-boot")
        assert "leaves nobody to compute" in (boot / "mdi-error.txt").read_text()
    shutil.rmtree(boot)


def test_installing_again_keeps_the_key_and_the_uninstaller_too_unless_it_is_to_purge(system: Path) -> None:
    before = key_of(system)
    inside(system, INSTALL)
    assert key_of(system) == before
    inside(system, INSTALL, "--uninstall")
    assert key_of(system) == before
    assert (system / "var/lib/mdi/identity.pem").exists()
    left = [system / path for path in ("opt/mdi", "usr/local/bin/mdi", "etc/systemd/system/mdi.service")]
    assert [path for path in left if path.exists()] == []
    assert not (system / "etc/systemd/system/multi-user.target.wants/mdi.service").is_symlink()
    inside(system, INSTALL, "--uninstall")
    inside(system, INSTALL, "--uninstall", "--purge")
    assert [path for path in (system / "etc/mdi", system / "var/lib/mdi") if path.exists()] == []
    assert "mdi:" not in (system / "etc/passwd").read_text() + (system / "etc/group").read_text()
    inside(system, INSTALL)
    assert key_of(system) != before


def test_an_old_python_is_refused_with_a_sentence(system: Path) -> None:
    fake = system / "usr/local/bin/python3"
    fake.write_text('#!/bin/sh\ncase $2 in *version_info*"<"*) exit 1;; *) echo 3.9;; esac\n')
    fake.chmod(0o755)
    try:
        done: subprocess.CompletedProcess[str] = inside(system, INSTALL, check=False)
    finally:
        fake.unlink()
    assert done.returncode == 2
    assert "Python here is 3.9, and MDI needs 3.11 or later" in done.stderr
