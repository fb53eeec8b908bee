"""Which engine `--device` chooses, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdi.engine import backend, torch_device
from mdi.engine.backend import ONNX, Backend, choose_backend
from mdi.engine.torch_device import out_of_memory
from mdi.errors import NoRoom, UserError

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU here")
# What commands import, and what they then ask: none of it may cost a Pi the memory of torch, or the seconds of importing it.
LIGHT = """
import sys
import mdi.node.daemon, mdi.pipeline.starter, mdi.profile.cache
from mdi.engine import backend
from mdi.profile.memory import offered_bytes
backend.DRIVER_FILES = ()
chosen = backend.choose_backend(sys.argv[1])
offered_bytes(None, 0, chosen)
print("torch" in sys.modules, chosen.device)
"""


@pytest.mark.parametrize("device", ["cpu", "auto"])
@pytest.mark.skipif(sys.platform == "darwin", reason="every Mac may have a GPU that torch knows")
def test_torch_is_not_imported_for_the_cpu(device: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, device], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "cpu"]


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1234", "CPU", "", "cuda:1 "])
def test_a_device_that_is_none_is_refused_with_the_list(device: str) -> None:
    with pytest.raises(UserError, match="no device") as refused:
        choose_backend(device)
    assert "torch-cpu" in (refused.value.hint or "")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "torch-cpu"])
def test_missing_torch_is_told_with_what_to_install(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # what the import system takes for a module that is not there
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="torch, which is not installed") as refused:
        choose_backend(device)
    assert refused.value.hint == "pip install 'mdi[gpu]'"


def test_auto_without_torch_is_onnxruntime_even_beside_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backend, "DRIVER_FILES", (str(tmp_path),))
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert choose_backend("auto") == ONNX


@WITHOUT_GPU
def test_a_driver_without_a_gpu_that_torch_sees_is_onnxruntime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backend, "DRIVER_FILES", (str(tmp_path),))
    assert choose_backend("auto") == ONNX


@WITHOUT_GPU
@pytest.mark.parametrize(("device", "named"), [("cuda", "no CUDA GPU"), ("cuda:3", "no CUDA GPU"), ("mps", "no Apple GPU")])
def test_a_gpu_that_is_not_there_is_told(device: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as refused:
        choose_backend(device)
    assert "--device cpu" in (refused.value.hint or "")


def test_a_gpu_beyond_the_last_is_told_with_those_that_are_there() -> None:
    assert backend._cuda_device("cuda", 2) == "cuda:0"
    assert backend._cuda_device("cuda:1", 2) == "cuda:1"
    with pytest.raises(UserError, match="cuda:0 to cuda:1"):
        backend._cuda_device("cuda:2", 2)


def test_torch_on_the_cpu_counts_the_machines_memory() -> None:
    chosen = choose_backend("torch-cpu")
    assert chosen == Backend("torch-cpu", None, str(torch.__version__))
    assert chosen.torch_device == torch.device("cpu")
    assert (chosen.free_bytes(), chosen.total_bytes(), chosen.cache_bytes()) == (None, None, 0)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory (x)")]
)
def test_full_device_memory_is_no_room(error: RuntimeError) -> None:
    with pytest.raises(NoRoom, match="memory of CPU is full"), out_of_memory(torch.device("cpu")):
        raise error


def test_other_failures_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory(torch.device("cpu")):
        raise RuntimeError("shapes do not fit")


def test_the_cpu_computes_in_fp32() -> None:
    assert torch_device.compute_dtype(torch.device("cpu")) is torch.float32
