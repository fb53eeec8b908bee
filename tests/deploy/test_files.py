"""What can be said of the deployment files without installing anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PI = ROOT / "deploy" / "pi"
INSTALL = PI / "install.sh"
OLD_DPKG = "#!/bin/sh\necho {architecture}\n"


def run(*command: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env=environment
    )


def needs(program: str) -> str:
    if (found := shutil.which(program)) is None:
        pytest.skip(f"{program} is not here")
    return found


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_the_installer_is_a_script_of_any_shell(shell: str) -> None:
    done = run(needs(shell), "-n", INSTALL)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_has_nothing_to_say() -> None:
    done = run(needs("shellcheck"), INSTALL)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def system(tmp_path: Path) -> str:
    """A PATH whose dpkg says arm64, so that a dry run goes on wherever the tests run."""
    return fake_dpkg(tmp_path, "arm64")


def fake_dpkg(directory: Path, architecture: str) -> str:
    dpkg = directory / "dpkg"
    dpkg.write_text(OLD_DPKG.format(architecture=architecture))
    dpkg.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_a_dry_run_prints_the_steps_and_changes_nothing(system: str) -> None:
    needs("systemctl")
    places = [
        Path(place)
        for place in ("/opt/mdi", "/etc/mdi", "/var/lib/mdi", "/usr/local/bin/mdi", "/etc/systemd/system/mdi.service")
    ]
    before = [place.exists() for place in places]
    done = run(INSTALL, "--dry-run", "--any-system", "--no-start", path=system)
    assert done.returncode == 0, done.stderr
    steps = done.stdout.splitlines()
    order = ["python3 -m venv", "-m pip", "write /usr/local/bin/mdi", "node prepare", "mdi.service", "systemctl --quiet enable"]
    positions = [next(i for i, step in enumerate(steps) if part in step) for part in order]
    assert positions == sorted(positions)
    assert [place.exists() for place in places] == before


def test_a_dry_run_of_the_uninstaller_keeps_what_only_purge_removes(system: str) -> None:
    kept = run(INSTALL, "--dry-run", "--uninstall", path=system).stdout
    purged = run(INSTALL, "--dry-run", "--uninstall", "--purge", path=system).stdout
    assert "rm -rf /opt/mdi" in kept
    assert "/var/lib/mdi" not in kept
    assert "rm -rf /etc/mdi /var/lib/mdi" in purged


@pytest.mark.parametrize("architecture", ["armhf", "i386"])
def test_a_32_bit_system_is_refused_with_a_sentence(tmp_path: Path, architecture: str) -> None:
    done = run(INSTALL, "--dry-run", path=fake_dpkg(tmp_path, architecture))
    assert done.returncode == 2
    assert f"this system is 32-bit ({architecture}), and MDI needs a 64-bit one" in done.stderr
    assert "Raspberry Pi OS (64-bit)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--purge"], "--purge belongs to --uninstall"),
        (["--nonsense"], "--nonsense is not an option"),
        (["one", "two"], "more than one source"),
        (["--key-file"], "--key-file needs a file"),
        (["--key-file", "/nonexistent"], "/nonexistent cannot be read"),
        (["--any-system", "/nonexistent"], "no checkout of MDI"),
        (["--any-system", "/nonexistent.whl"], "/nonexistent.whl is not there"),
    ],
)
def test_what_was_typed_wrong_is_named(system: str, arguments: list[str], complaint: str) -> None:
    needs("systemctl")
    done = run(INSTALL, "--dry-run", *arguments, path=system)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_the_units_are_valid(tmp_path: Path) -> None:
    """systemd's own parser, and no warning; the program that is not installed here stands in for itself."""
    analyze = needs("systemd-analyze")
    units = []
    for unit in sorted(PI.glob("*.service")):
        units.append(tmp_path / unit.name)
        units[-1].write_text(re.sub(r"/opt/mdi/venv/bin/mdi", "/bin/true", unit.read_text()))
    done = run(analyze, "verify", "--man=no", *units)
    said = [line for line in done.stderr.splitlines() if "mdi" in line]
    assert (done.returncode, said) == (0, [])


def test_the_node_is_exposed_no_more_than_a_service_should_be() -> None:
    """`systemd-analyze security` weighs what a unit may do from 0 (nothing) to 10."""
    analyze = needs("systemd-analyze")
    done = run(analyze, "security", "--offline=yes", "--threshold=20", "--no-pager", PI / "mdi.service")
    if "unrecognized option" in done.stderr or "Unknown" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at files")
    assert done.returncode == 0, done.stdout
