"""Which engine computes, and on what: onnxruntime on the CPU, or torch on an accelerator. torch is imported only where it is used."""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdi.engine.protocol import Engine, Head, StageShape
from mdi.errors import UserError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.packs import Pack

if TYPE_CHECKING:
    import torch

CPU, TORCH_CPU, MPS, AUTO = "cpu", "torch-cpu", "mps", "auto"
DEVICE_HINT = "use --device auto, cpu, cuda, cuda:1 (a second GPU), mps, or torch-cpu"
INSTALL_HINT = "pip install 'mdi[gpu]'"
_CUDA = re.compile(r"cuda(?::([0-9]{1,3}))?")
# What a driver of NVIDIA or AMD puts there, under WSL too. Without any of them, auto does not spend the seconds that importing torch takes.
DRIVER_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True, slots=True)
class Backend:
    """`device` is cpu, torch-cpu, mps or cuda:N. `accelerator` is its name for people, None on the CPU.

    `runtime` is torch's version, None for onnxruntime.
    """

    device: str
    accelerator: str | None = None
    runtime: str | None = None

    @property
    def torch_device(self) -> torch.device:
        """Of a torch backend."""
        import torch

        return torch.device("cpu" if self.device == TORCH_CPU else self.device)

    def kv_type(self, wanted: KvType) -> KvType:
        """How its engines keep KV when `wanted` is asked for: torch as it computes."""
        if self.runtime is None:
            return wanted
        return KvType.FP32 if self.device == TORCH_CPU else KvType.HALF

    def make_engine(self, config: ModelConfig, packs: Sequence[Pack], shape: StageShape, start: int) -> Engine:
        """Loads consecutive blocks of the model, from block `start` on.

        Raises ModelError for packs that do not fit, NoRoom when the device's memory is full.
        """
        if self.runtime is None:
            from mdi.engine.onnx_engine import OnnxEngine

            return OnnxEngine(config, packs, shape, start)
        from mdi.engine.torch_engine import TorchEngine

        return TorchEngine(config, packs, shape, start, self.torch_device)

    def make_head(self, config: ModelConfig, pack: Pack, threads: int) -> Head:
        """Loads final norm and output matrix. Raises as `make_engine` does."""
        if self.runtime is None:
            from mdi.engine.onnx_engine import Head as OnnxHead

            return OnnxHead(config, pack, threads)
        from mdi.engine.torch_engine import TorchHead

        return TorchHead(config, pack, threads, self.torch_device)

    def free_bytes(self) -> int | None:
        """What is free of the accelerator's own memory; None where the machine's memory is what counts."""
        if self.accelerator is None:
            return None
        from mdi.engine import torch_device

        return torch_device.free_bytes(self.torch_device)

    def total_bytes(self) -> int | None:
        """All of the accelerator's own memory; None where the machine's memory is what counts."""
        if self.accelerator is None:
            return None
        from mdi.engine import torch_device

        return torch_device.total_bytes(self.torch_device)

    def cache_bytes(self) -> int:
        """The accelerator's last cache; 0 when it has none of its own or does not tell."""
        if self.accelerator is None:
            return 0
        from mdi.engine import torch_device

        return torch_device.cache_bytes(self.torch_device)

    def release(self) -> None:
        """After an engine was dropped: lets other processes have its memory."""
        if self.accelerator is not None:
            from mdi.engine import torch_device

            torch_device.release(self.torch_device)


ONNX = Backend(CPU)


def choose_backend(device: str = AUTO) -> Backend:
    """The backend that `--device` names; auto takes CUDA, then MPS, if torch is installed and sees one, else onnxruntime.

    Raises UserError for a name that is none, for torch that is missing, and for a device that is not there.
    """
    if device == CPU:
        return ONNX
    if device == AUTO:
        return _automatic()
    if device not in (TORCH_CPU, MPS) and _CUDA.fullmatch(device) is None:
        raise UserError(f"--device {device[:40]!r} is no device", hint=DEVICE_HINT)
    if not _has_torch():
        raise UserError(f"--device {device} needs torch, which is not installed", hint=INSTALL_HINT)
    return _with_torch(device)


def _automatic() -> Backend:
    if not _may_have_accelerator() or not _has_torch():
        return ONNX
    import torch

    if torch.cuda.is_available():
        return _with_torch("cuda")
    return _with_torch(MPS) if torch.backends.mps.is_available() else ONNX


def _with_torch(device: str) -> Backend:
    import torch

    from mdi.engine.torch_device import device_name

    runtime = str(torch.__version__)
    if device == TORCH_CPU:
        return Backend(device, None, runtime)
    if device == MPS:
        if not torch.backends.mps.is_available():
            raise UserError(
                "torch sees no Apple GPU here", hint="--device mps needs a Mac with Apple silicon; use --device cpu"
            )
    else:
        device = _cuda_device(device, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return Backend(device, device_name(torch.device(device)), runtime)


def _cuda_device(device: str, n_gpus: int) -> str:
    """`cuda` is the first one. Raises UserError for one that is not there."""
    match = _CUDA.fullmatch(device)
    index = int(match[1] or 0) if match else 0
    if index < n_gpus:
        return f"cuda:{index}"
    if n_gpus:
        raise UserError(f"--device {device} is not here: torch sees {n_gpus} GPUs, cuda:0 to cuda:{n_gpus - 1}")
    raise UserError("torch sees no CUDA GPU here", hint="check the driver with nvidia-smi, or use --device cpu")


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _may_have_accelerator() -> bool:
    if platform.system() == "Linux":
        return any(Path(path).exists() for path in DRIVER_FILES)
    return platform.system() == "Windows" or platform.machine() == "arm64"
