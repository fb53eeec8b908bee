"""A stage's blocks and KV on a torch device, and one step over them as tensors. What `torch_engine.py` feeds from numpy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mdi.engine.protocol import StageShape
from mdi.engine.torch_blocks import BlockKV, BlockShape, attention, attention_mask, load_block
from mdi.engine.torch_kernels import EAGER, FUSED_ROWS, Functions, Kernels, difference
from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.layout import block_layout
from mdi.model.packs import Pack

KV_STEP = 64  # KV lengths are multiples of it: masks of CUDA's attention kernels must be aligned to 16 values
LEAST_LENGTH = 256  # KV of a decode step is read in lengths of powers of two from here on: at most twice what is needed

LLAMA_PARTS = {"attn_norm", "qkv", "o", "ffn_norm", "gate_up", "down"}

Attend: TypeAlias = Callable[[Tensor, BlockKV], Tensor]

_log = logging.getLogger(__name__)


class TorchStage:
    """Consecutive blocks. `capacity` KV rows of a slot are its context and, last, a row that idle slots write to and nobody reads."""

    def __init__(
        self,
        config: ModelConfig,
        packs: Sequence[Pack],
        shape: StageShape,
        start: int,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels,
    ) -> None:
        _check_computed(config)
        self.device = device
        self.n_slots = shape.n_slots
        self.d_model = config.d_model
        self.capacity = _round_up(shape.ctx + 1, KV_STEP)
        self._window = config.window(start)
        self._shape = BlockShape.of(config, dtype)
        self._blocks = [load_block(pack, config, device, dtype) for pack in packs]
        self._kv = [BlockKV.empty(shape.n_slots, self._shape, self.capacity, device) for _ in packs]
        cos, sin = config.rope.tables(config.head_dim, self.capacity)
        self._cos, self._sin = (torch.from_numpy(table).to(device).unsqueeze(1) for table in (cos, sin))
        self._heads = torch.arange(config.n_kv_heads, device=device)
        self._kernels = self._proven(kernels)

    @property
    def weight_bytes(self) -> int:
        return sum(block.n_bytes for block in self._blocks)

    @property
    def kv_bytes(self) -> int:
        return sum(kv.keys.nbytes + kv.values.nbytes for kv in self._kv)

    @property
    def idle_position(self) -> int:
        return self.capacity - 1

    @property
    def compiled(self) -> bool:
        return self._kernels.few is not None

    def decode(self, x: Tensor, positions: Tensor, first: int, length: int) -> Tensor:
        """One token of each slot `[first, first + B)`: x float32 [B, d_model], positions int64 [B], `length` above all of them.

        A slot without a token takes part with any finite x at `idle_position`.
        """
        return self._decode(x, positions, first, length, self._kernels.for_rows(len(x)))

    def _decode(self, x: Tensor, positions: Tensor, first: int, length: int, functions: Functions) -> Tensor:
        slots = torch.arange(first, first + len(x), device=self.device)
        mask = attention_mask(positions.unsqueeze(1), length, self._window, self._shape.dtype)
        here = slice(first, first + len(x))

        def attend(queries: Tensor, kv: BlockKV) -> Tensor:
            attended = attention(queries.unsqueeze(1), kv.keys[here, :, :length], kv.values[here, :, :length], mask)
            return attended.squeeze(1)

        return self._run(x, slots, positions, attend, functions)

    def ragged(
        self, x: Tensor, positions: Tensor, first: int, pad: Tensor, unpad: Tensor, query_positions: Tensor, length: int
    ) -> Tensor:
        """Any step: x float32 [T, d_model] at `positions` int64 [T]; `pad` [B, S] and `unpad` [T] are those of `batch.Layout`."""
        b, s = pad.shape
        mask = attention_mask(query_positions, length, self._window, self._shape.dtype)
        here = slice(first, first + b)

        def attend(queries: Tensor, kv: BlockKV) -> Tensor:
            attended = attention(queries[pad], kv.keys[here, :, :length], kv.values[here, :, :length], mask)
            return attended.view(b * s, -1)[unpad]

        slots = first + torch.div(unpad, s, rounding_mode="floor")
        return self._run(x, slots, positions, attend, self._kernels.for_rows(FUSED_ROWS + 1))

    def _run(self, x: Tensor, slots: Tensor, positions: Tensor, attend: Attend, functions: Functions) -> Tensor:
        angles = (self._cos[positions], self._sin[positions])
        kv_heads = slots.unsqueeze(1) * len(self._heads) + self._heads  # [T, n_kv_heads]
        kv_index = (kv_heads * self.capacity + positions.unsqueeze(1)).flatten()
        with _attention_kernels(self.device):
            for block, kv in zip(self._blocks, self._kv, strict=True):
                queries = functions.before(
                    x, block, self._shape, angles, kv_index, kv.key_rows, kv.value_rows, functions.expand
                )
                x = functions.after(x, attend(queries, kv), block, self._shape, functions.expand)
        return x

    def _proven(self, kernels: Kernels) -> Kernels:
        """The compiled kernels, if they compile here and compute what the plain ones do; compiles for every number of rows.

        It happens while the stage loads: in the middle of an answer, a compilation would pass for a node that hangs.
        """
        few = kernels.few
        if few is None:
            return kernels
        counts = sorted({row_class(n, self.n_slots) for n in range(1, min(FUSED_ROWS, self.n_slots) + 1)})
        for rows, functions in (*((count, few) for count in counts), (1, kernels.many)):
            x = torch.randn((rows, self.d_model), generator=torch.Generator().manual_seed(rows)).to(self.device)
            problem = difference(partial(self._added, x, functions), partial(self._added, x, EAGER.many))
            if problem is not None:
                _log.warning("computing without compiled kernels, which is slower: %s", problem)
                return EAGER
        return kernels

    def _added(self, x: Tensor, functions: Functions) -> Tensor:
        """What the blocks add to x as a first token: the stream that passes through them would hide a mistake."""
        positions = torch.zeros(len(x), dtype=torch.int64, device=self.device)
        return self._decode(x, positions, 0, self.length_class(1), functions) - x

    def length_class(self, total: int) -> int:
        """The KV length that a decode step over `total` tokens reads."""
        return min(self.capacity, max(LEAST_LENGTH, 1 << (total - 1).bit_length()))

    def chunk_length(self, total: int) -> int:
        """The KV length that any other step reads."""
        return min(self.capacity, _round_up(total, KV_STEP))


def _check_computed(config: ModelConfig) -> None:
    """Raises ModelError for what only the onnxruntime engine computes so far."""
    some = config.windowed_blocks and len(config.windowed_blocks) < config.n_blocks
    special = (config.attention_scale, config.attention_softcap, config.experts, config.local_rope)
    parts = {placed.part.name for placed in block_layout(config, 0)}
    if some or config.unrotated_blocks or any(value is not None for value in special) or parts != LLAMA_PARTS:
        raise ModelError(f"{config.architecture} is not computed by torch", hint="use --device cpu on that node")


def row_class(n_rows: int, n_slots: int) -> int:
    """The number of rows that a decode step of `n_rows` is computed with: a power of two, so that there are few kinds of steps."""
    return min(n_slots, 1 << (n_rows - 1).bit_length())


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _attention_kernels(device: torch.device) -> AbstractContextManager[object]:
    """On CUDA not cuDNN's attention, which plans anew for every shape: prompts have as many as they have lengths."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
