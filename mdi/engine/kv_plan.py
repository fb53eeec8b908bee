"""How steps treat KV in 8 bits: in place or expanded, and what that takes. Pure; the graph of both is in `kv_graph.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.engine.batch import Layout
from mdi.model.config import ModelConfig

EXPANDED_BYTES = 32 << 20  # of one slot that is full: as many heads at a time as that holds, one at least
MOST_EXPANDED_BYTES = 256 << 20  # of all slots of a step: a step that would need more stays in place
EXPANDED_VALUE_BYTES = 2 * 2 * 4  # a key and a value in fp32, as they go into the kernel and as they come out of it
# In place, time grows with tokens times query heads; expanded, with tokens too but three times less, after the time to expand. They meet at
# 6 to 8 tokens with 4 query heads to a KV head, and at 16 to 32 with one (`python -m tools.bench_kv`).
LEAST_PRODUCTS = 32


@dataclass(frozen=True, slots=True)
class KvPlan:
    """For the blocks of one model, in slots of `ctx` tokens."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    ctx: int

    @classmethod
    def of(cls, config: ModelConfig, ctx: int) -> KvPlan:
        return cls(config.n_heads, config.n_kv_heads, config.head_dim, ctx)

    @property
    def groups(self) -> int:
        """Heads are expanded in so many groups, one after another: the fewest with which a full slot takes EXPANDED_BYTES at most."""
        divisors = [n for n in range(1, self.n_kv_heads + 1) if self.n_kv_heads % n == 0]
        small = [n for n in divisors if self._bytes(self.ctx, self.n_kv_heads // n) <= EXPANDED_BYTES]
        return small[0] if small else self.n_kv_heads

    def expands(self, n_rows: int, longest: int, held: int) -> bool:
        """Whether a step of `n_rows` slots with at most `longest` new tokens each, and `held` tokens then, is computed expanded."""
        return self.may_expand(longest) and n_rows * self._bytes(held, self.n_kv_heads // self.groups) <= MOST_EXPANDED_BYTES

    def may_expand(self, longest: int) -> bool:
        """Whether any step with at most `longest` new tokens a slot is computed expanded."""
        return longest * self.n_heads >= LEAST_PRODUCTS * self.n_kv_heads

    def most_bytes(self, n_slots: int) -> int:
        """What an expanded step takes at most."""
        return min(MOST_EXPANDED_BYTES, n_slots * self._bytes(self.ctx, self.n_kv_heads // self.groups))

    def _bytes(self, tokens: int, heads: int) -> int:
        return tokens * heads * self.head_dim * EXPANDED_VALUE_BYTES

    def inputs(self, layout: Layout) -> dict[str, NDArray[Any]]:
        """The inputs that a graph has for KV in 8 bits: see `kv_graph.declare`."""
        n_rows, longest = layout.pad.shape
        if not self.expands(n_rows, longest, layout.reach):
            return IN_PLACE
        starts = layout.last_position - layout.query_lengths + 1  # [B]
        positions = np.minimum(starts[:, None] + np.arange(longest), self.ctx - 1)  # [B, S]
        places = np.empty((len(layout.unpad), self.n_kv_heads, 3), np.int64)
        places[..., 0] = (layout.unpad // longest)[:, None]
        places[..., 1] = np.arange(self.n_kv_heads)
        places[..., 2] = positions.reshape(-1)[layout.unpad][:, None]
        return {"expand": np.array(True), "positions": positions, "held": np.array([layout.reach], np.int64), "places": places}


IN_PLACE: dict[str, NDArray[Any]] = {
    "expand": np.array(False),
    "positions": np.zeros((1, 1), np.int64),
    "held": np.zeros(1, np.int64),
    "places": np.zeros((1, 1, 3), np.int64),
}
