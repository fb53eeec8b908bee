from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tools.arm64 import emulator
from tools.arm64.emulator import Emulator, Unobtainable
from tools.arm64.wheels import Wheel, _measured, _platforms, is_pruned, unpack

INSTALLER = Path(__file__).parents[2] / "deploy" / "pi" / "install.sh"


@pytest.mark.parametrize(
    ("name", "pruned"),
    [
        ("numpy/linalg/tests/test_linalg.py", True),
        ("onnx/backend/test/data/node/model.onnx", True),
        ("numpy/testing/__init__.py", False),
        ("fsspec/tests/test_api.py", False),
        ("tests.py", False),
        ("numpy.libs/tests", False),
    ],
)
def test_only_tests_of_numpy_and_onnx_are_pruned(name: str, pruned: bool) -> None:
    assert is_pruned(name) == pruned
    if pruned:
        assert f"site-packages/{name.split('/')[0]}/" in INSTALLER.read_text()


def test_a_wheel_is_measured_as_it_will_lie_on_the_card(tmp_path: Path) -> None:
    path = tmp_path / "numpy-2.0-cp311-cp311-manylinux_2_28_aarch64.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("numpy/core.so", bytes(100_000))
        archive.writestr("numpy/fft/tests/data", bytes(50_000))
    assert _measured(path) == Wheel("numpy", path.stat().st_size, 100_000)
    unpack(tmp_path, tmp_path / "site")
    assert (tmp_path / "site/numpy/core.so").stat().st_size == 100_000


def test_pip_is_told_every_glibc_that_debian_12_can_run() -> None:
    platforms = [word.removeprefix("--platform=") for word in _platforms() if word.startswith("--platform=")]
    assert platforms[0] == "manylinux2014_aarch64"
    assert {"manylinux_2_17_aarch64", "manylinux_2_28_aarch64", "manylinux_2_36_aarch64"} <= set(platforms)
    assert "manylinux_2_37_aarch64" not in platforms


def test_python_is_emulated_on_the_core_that_was_named(tmp_path: Path) -> None:
    command = Emulator(Path("qemu"), tmp_path, tmp_path / "site").command("cortex-a72", {"MDI_HOME": "/h"}, "-m", "mdi")
    assert command[:5] == ["qemu", "-cpu", "cortex-a72", "-L", str(tmp_path)]
    assert "MDI_HOME=/h" in command
    assert "OPENBLAS_NUM_THREADS=1" in command
    assert command[-3:] == [str(tmp_path / "usr/bin/python3.11"), "-m", "mdi"]


def test_what_this_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Unobtainable, match="no-such-program is not here"):
        emulator.needs("no-such-program")
    monkeypatch.setattr(emulator, "MIRROR", "http://127.0.0.1:9")  # nobody listens on the port of `discard`
    with pytest.raises(Unobtainable, match=r"127\.0\.0\.1:9/.* does not answer"):
        emulator._fetch(f"{emulator.MIRROR}/dists")
