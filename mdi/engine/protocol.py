"""What an engine is: it computes a range of blocks, and knows nothing of networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mdi.engine.batch import Span
from mdi.engine.kv_plan import KvPlan
from mdi.errors import UserError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType

MAX_THREADS = 1024  # more than any device has cores; each takes memory and time to start


def check_threads(threads: int | None) -> None:
    """Raises UserError for a number of threads that no device computes with."""
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads} leaves nobody to compute", hint="choose at least 1")
    if threads is not None and threads > MAX_THREADS:
        raise UserError(f"--threads {threads} is more than {MAX_THREADS}", hint="one per core is fastest")


@dataclass(frozen=True, slots=True)
class StageShape:
    """What a stage must be able to hold at once."""

    n_slots: int
    ctx: int
    threads: int
    kv_type: KvType = KvType.FP32

    def kv_bytes(self, config: ModelConfig, n_blocks: int) -> int:
        """Bytes of KV when every slot is full. Memory is taken as it is written."""
        return 2 * n_blocks * self.n_slots * config.n_kv_heads * self.ctx * config.head_dim * self.kv_type.value_bytes

    def step_bytes(self, config: ModelConfig) -> int:
        """Bytes that one block's attention takes beside KV while a step runs: of KV in 8 bits, what is expanded at most."""
        return KvPlan.of(config, self.ctx).most_bytes(self.n_slots) if self.kv_type is KvType.INT8 else 0


class Engine(Protocol):
    """Blocks `[start, stop)` of one model, with their KV."""

    @property
    def weight_bytes(self) -> int: ...

    @property
    def kv_bytes(self) -> int: ...

    def forward(self, spans: Sequence[Span], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs [T, d_model] through the blocks and writes KV at each span's position. Not thread-safe: one caller at a time.

        Writing at a position again replaces what was there and all that follows, so a slot is freed by starting again at 0.
        """
        ...


class Head(Protocol):
    """Final norm and output matrix of one model."""

    @property
    def weight_bytes(self) -> int: ...

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """[R, d_model] to [R, vocab_size]. Not thread-safe: one caller at a time."""
        ...
