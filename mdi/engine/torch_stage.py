"""A stage's blocks and KV on a torch device, and one step over them as tensors. What `torch_engine.py` feeds from numpy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mdi.engine.protocol import StageShape
from mdi.engine.torch_attention import BlockKV, attention, attention_mask
from mdi.engine.torch_blocks import Angles, BlockShape, load_block
from mdi.engine.torch_kernels import EAGER, FUSED_ROWS, LEAST_COSINE, LEAST_SPARSE_COSINE, Functions, Kernels, difference
from mdi.engine.torch_weights import held_bytes
from mdi.model.config import ModelConfig
from mdi.model.packs import Pack
from mdi.model.rope import Rope

KV_STEP = 64  # KV lengths are multiples of it: masks of CUDA's attention kernels must be aligned to 16 values
LEAST_LENGTH = 256  # KV of a decode step is read in lengths of powers of two from here on: at most twice what is needed

Attend: TypeAlias = Callable[[Tensor, BlockKV, Tensor], Tensor]
Masks: TypeAlias = Mapping[int | None, Tensor]  # by window

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
        blocks = range(start, start + len(packs))
        self.device = device
        self.n_slots = shape.n_slots
        self.d_model = config.d_model
        self.capacity = _round_up(shape.ctx + 1, KV_STEP)
        self._shape = BlockShape.of(config, dtype)
        self._softmax = partial(attention, scale=config.attention_scale, softcap=config.attention_softcap)
        self._windows = [config.window(block) for block in blocks]
        self._ropes = [config.rope_of(block) for block in blocks]
        self._tables = {rope: self._table(rope, shape.ctx) for rope in self._ropes if rope is not None}
        self._blocks = [load_block(pack, config, block, device, dtype) for pack, block in zip(packs, blocks, strict=True)]
        kv_size = (shape.n_slots, config.n_kv_heads, self.capacity, config.head_dim)
        self._kv = [BlockKV.empty(kv_size, dtype, device) for _ in packs]
        self._heads = torch.arange(config.n_kv_heads, device=device)
        self._least_cosine = LEAST_COSINE if config.experts is None else LEAST_SPARSE_COSINE
        self._kernels = self._proven(kernels)

    def _table(self, rope: Rope, ctx: int) -> Angles:
        """Cosines and sines [capacity, 1, rotated / 2]. `ctx` decides how to rotate; rows beyond it are those of idle slots."""
        tables = rope.tables(self._shape.head_dim, ctx)
        padded = (np.pad(table, ((0, self.capacity - ctx), (0, 0)), mode="edge") for table in tables)
        cos, sin = (torch.from_numpy(table).to(self.device).unsqueeze(1) for table in padded)
        return cos, sin

    @property
    def weight_bytes(self) -> int:
        return held_bytes(tuple(self._blocks))

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
        here = slice(first, first + len(x))

        def attend(queries: Tensor, kv: BlockKV, mask: Tensor) -> Tensor:
            attended = self._softmax(queries.unsqueeze(1), kv.keys[here, :, :length], kv.values[here, :, :length], mask)
            return attended.squeeze(1)

        masks = self._masks(positions.unsqueeze(1), length)
        static = functions.expand is None or self.device.type == "cuda"  # compiled, or recorded as a graph
        return self._run(x, slots, positions, attend, masks, functions, static=static)

    def ragged(
        self, x: Tensor, positions: Tensor, first: int, pad: Tensor, unpad: Tensor, query_positions: Tensor, length: int
    ) -> Tensor:
        """Any step: x float32 [T, d_model] at `positions` int64 [T]; `pad` [B, S] and `unpad` [T] are those of `batch.Layout`."""
        b, s = pad.shape
        here = slice(first, first + b)

        def attend(queries: Tensor, kv: BlockKV, mask: Tensor) -> Tensor:
            attended = self._softmax(queries[pad], kv.keys[here, :, :length], kv.values[here, :, :length], mask)
            return attended.view(b * s, -1)[unpad]

        slots = first + torch.div(unpad, s, rounding_mode="floor")
        masks = self._masks(query_positions, length)
        return self._run(x, slots, positions, attend, masks, self._kernels.for_rows(FUSED_ROWS + 1), static=False)

    def _masks(self, query_positions: Tensor, length: int) -> Masks:
        """One for each kind of window that the blocks have."""
        return {window: attention_mask(query_positions, length, window, self._shape.dtype) for window in set(self._windows)}

    def _run(
        self,
        x: Tensor,
        slots: Tensor,
        positions: Tensor,
        attend: Attend,
        masks: Masks,
        functions: Functions,
        *,
        static: bool,
    ) -> Tensor:
        angles: dict[Rope | None, Angles | None] = {None: None}
        angles |= {rope: (cos[positions], sin[positions]) for rope, (cos, sin) in self._tables.items()}
        kv_heads = slots.unsqueeze(1) * len(self._heads) + self._heads  # [T, n_kv_heads]
        kv_index = (kv_heads * self.capacity + positions.unsqueeze(1)).flatten()
        with _attention_kernels(self.device):
            for block, kv, rope, window in zip(self._blocks, self._kv, self._ropes, self._windows, strict=True):
                queries = functions.before(
                    x, block, self._shape, angles[rope], kv_index, kv.key_rows, kv.value_rows, functions.expand
                )
                attended = attend(queries, kv, masks[window])
                x = functions.after(x, attended, block, self._shape, functions.expand, static)
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
            problem = difference(partial(self._added, x, functions), partial(self._added, x, EAGER.many), self._least_cosine)
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
