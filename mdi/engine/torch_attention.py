"""Attention in torch: KV of a block, and queries over it with a mask that says which keys they see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class BlockKV(NamedTuple):
    """Keys and values [slots, n_kv_heads, capacity, head_dim], and the same memory as rows [slots n_kv_heads capacity, head_dim]."""

    keys: Tensor
    values: Tensor
    key_rows: Tensor
    value_rows: Tensor

    @classmethod
    def empty(cls, size: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> BlockKV:
        keys, values = (torch.zeros(size, dtype=dtype, device=device) for _ in range(2))
        return cls(keys, values, keys.view(-1, size[-1]), values.view(-1, size[-1]))


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """queries [B, S, n_heads, head_dim] over keys and values [B, n_kv_heads, L, head_dim]: [B, S, n_heads head_dim].

    `mask` [B, 1, S, L] is added to the scores, after `softcap` has bounded them. `scale` None: 1 / sqrt(head_dim). The query heads that
    share a key head stand beside each other as if they were more queries: no key is ever copied, and every SDPA kernel that takes a
    mask can compute it.
    """
    b, s, heads, dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    grouped = queries.view(b, s, kv_heads, group, dim).permute(0, 2, 3, 1, 4).reshape(b, kv_heads, group * s, dim)
    if s > 1:
        mask = mask.repeat(1, 1, group, 1)
    if softcap is None:
        attended = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    else:
        attended = _capped_attention(grouped, keys, values, mask, dim**-0.5 if scale is None else scale, softcap)
    return attended.view(b, kv_heads, group, s, dim).permute(0, 3, 1, 2, 4).reshape(b, s, heads * dim)


def _capped_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """Written out: no SDPA kernel bounds its scores. They are float32 from the product on."""
    scores = softcapped((queries @ keys.transpose(-1, -2)).float() * scale, softcap) + mask
    return scores.softmax(-1).to(values.dtype) @ values


def softcapped(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)


def attention_mask(positions: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """positions int64 [B, S] of queries among the first `length` keys: [B, 1, S, length], 0 where a key is seen and -inf where not.

    A query beyond the keys counts as the last one, so that every row sees at least one key: nothing of a padding query is used, but a
    row without any key would be NaN.
    """
    keys = torch.arange(length, device=positions.device)
    at = positions.clamp(max=length - 1).unsqueeze(-1)  # [B, S, 1]
    seen = keys <= at
    if window is not None:
        seen &= keys > at - window
    mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(~seen, float("-inf")).unsqueeze(1)
