"""The torch engine: blocks and head on CUDA, Apple MPS, or the CPU, where the same code is tested.

Packs of fp32 weights become bfloat16 (float16 where the device knows no better); packs of codes stay codes on the device.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdi.engine.batch import Layout, Span
from mdi.engine.protocol import StageShape
from mdi.engine.torch_attention import softcapped
from mdi.engine.torch_blocks import rms_norm
from mdi.engine.torch_decode import DecodeSteps
from mdi.engine.torch_device import compute_dtype, on_device, out_of_memory, set_threads
from mdi.engine.torch_kernels import EAGER, Functions, Kernels, difference, kernels_for
from mdi.engine.torch_stage import TorchStage
from mdi.engine.torch_weights import CodedPart, held_bytes, load_linear, load_vector
from mdi.errors import InternalError, ModelError
from mdi.model.config import ModelConfig
from mdi.model.packs import Pack, PackKind

# The compiled product with a head of codes takes one row at a time; from here on, dequantising once for all rows is cheaper.
HEAD_ROWS = 4

_log = logging.getLogger(__name__)


class TorchEngine:
    """An Engine (see `protocol.py`). Raises NoRoom when the device's memory does not hold it."""

    def __init__(
        self,
        config: ModelConfig,
        packs: Sequence[Pack],
        shape: StageShape,
        start: int,
        device: torch.device,
        *,
        dtype: torch.dtype | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        if not packs:
            raise InternalError("a stage has at least one block")
        self._shape = shape
        self._device = device
        set_threads(device, shape.threads)
        with torch.no_grad(), on_device(device), out_of_memory(device):
            self._stage = TorchStage(
                config, packs, shape, start, device, dtype or compute_dtype(device), kernels or kernels_for(device)
            )
            self._steps = DecodeSteps(self._stage)

    @property
    def weight_bytes(self) -> int:
        return self._stage.weight_bytes

    @property
    def kv_bytes(self) -> int:
        return self._stage.kv_bytes

    @property
    def capacity(self) -> int:
        """Tokens that `kv_bytes` hold, of all slots together."""
        return self._stage.capacity * self._shape.n_slots

    @property
    def compiled(self) -> bool:
        """Whether decode steps run compiled kernels; on accelerators False means that compiling failed."""
        return self._stage.compiled

    def forward(self, spans: Sequence[Span], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        layout = Layout.of(spans)
        if int(layout.total) > self._shape.ctx or layout.first_slot + len(layout.query_lengths) > self._shape.n_slots:
            raise InternalError(f"step outside the stage's {self._shape.n_slots} slots of {self._shape.ctx} tokens")
        with torch.no_grad(), on_device(self._device), out_of_memory(self._device):
            if layout.pad.shape[1] == 1:
                return self._steps.run(layout, hidden)
            return self._ragged(layout, hidden)

    def _ragged(self, layout: Layout, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        longest = layout.pad.shape[1]
        starts = (layout.last_position - layout.query_lengths + 1).clip(0)  # [B]
        query_positions = starts[:, None] + np.arange(longest)  # [B, S]
        out = self._stage.ragged(
            self._tensor(hidden.astype(np.float32)),
            self._tensor(query_positions.reshape(-1)[layout.unpad]),
            layout.first_slot,
            self._tensor(layout.pad),
            self._tensor(layout.unpad),
            self._tensor(query_positions),
            self._stage.chunk_length(int(layout.total)),
        )
        result: NDArray[np.float32] = out.cpu().numpy()
        return result

    def _tensor(self, array: NDArray[np.float32] | NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


class TorchHead:
    """Final norm and output matrix on the device; the interface of `onnx_engine.Head`."""

    def __init__(
        self,
        config: ModelConfig,
        pack: Pack,
        threads: int,
        device: torch.device,
        *,
        dtype: torch.dtype | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        if pack.kind is not PackKind.HEAD:
            raise ModelError(f"pack {pack.path.name} is no head")
        self._eps = config.norm_eps
        self._softcap = config.logit_softcap
        self._device = device
        self._dtype = dtype or compute_dtype(device)
        set_threads(device, threads)
        with torch.no_grad(), on_device(device), out_of_memory(device):
            self._norm = load_vector(pack, "norm", device, (config.d_model,))
            self._linear = load_linear(pack, "head", config.d_model, device, self._dtype, rows=config.vocab_size)
            self._kernels = self._proven(kernels or kernels_for(device), config.d_model)
        self.weight_bytes = held_bytes((self._linear, self._norm))

    @property
    def compiled(self) -> bool:
        return self._kernels.few is not None

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """[R, d_model] to [R, vocab_size]."""
        with torch.no_grad(), on_device(self._device), out_of_memory(self._device):
            x = torch.from_numpy(np.array(hidden, np.float32)).to(self._device)
            few = self._kernels.few
            if few is not None and len(x) <= HEAD_ROWS:
                found = torch.cat([self._product(x[i : i + 1], few) for i in range(len(x))])
            else:
                found = self._product(x, self._kernels.many)
            result: NDArray[np.float32] = found.cpu().numpy()
        return result

    def _product(self, x: Tensor, functions: Functions) -> Tensor:
        logits = functions.linear(rms_norm(x, self._norm, self._eps), self._linear, self._dtype, functions.expand)
        return logits if self._softcap is None else softcapped(logits, self._softcap)

    def _proven(self, kernels: Kernels, d_model: int) -> Kernels:
        """See `TorchStage`; a plain matrix gains nothing by compiling."""
        few = kernels.few
        if few is None or not any(isinstance(part, CodedPart) for part in self._linear):
            return EAGER
        x = torch.randn((1, d_model), generator=torch.Generator().manual_seed(0)).to(self._device)
        for functions in (few, kernels.many):
            problem = difference(partial(self._product, x, functions), partial(self._product, x, EAGER.many))
            if problem is not None:
                _log.warning("computing the head without compiled kernels, which is slower: %s", problem)
                return EAGER
        return kernels
