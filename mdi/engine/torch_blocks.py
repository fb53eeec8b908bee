"""The mathematics of a transformer block in torch: pure functions over tensors, but for the KV rows that are written in place.

A block is cut at its attention, because the parts around it have shapes that depend on the number of rows alone. torch.compile makes few
kernels of them, once for all blocks and all positions.

The residual stream stays float32 whatever the compute type: it is d_model values per token, and rounding it costs accuracy in every block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mdi.engine.torch_weights import Expand, Linear, linear, linear_bytes, load_linear, load_vector
from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.packs import Pack, PackKind

# What the functions below compute. A family that needs more (biases, other norms or activations, experts) is refused, not computed wrongly.
COMPUTED = frozenset({"LlamaForCausalLM", "MistralForCausalLM"})


class BlockShape(NamedTuple):
    """What the functions below need of a ModelConfig."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ffn: int
    norm_eps: float
    dtype: torch.dtype

    @classmethod
    def of(cls, config: ModelConfig, dtype: torch.dtype) -> BlockShape:
        """Raises ModelError for a family that is not computed here."""
        if config.architecture not in COMPUTED:
            raise ModelError(f"the torch engine does not compute {config.architecture}", hint="use --device cpu on that node")
        return cls(config.n_heads, config.n_kv_heads, config.head_dim, config.d_ffn, config.norm_eps, dtype)


class BlockWeights(NamedTuple):
    attn_norm: Tensor
    qkv: Linear
    o: Linear
    ffn_norm: Tensor
    gate_up: Linear
    down: Linear

    @property
    def n_bytes(self) -> int:
        return (
            self.attn_norm.nbytes
            + self.ffn_norm.nbytes
            + sum(linear_bytes(parts) for parts in (self.qkv, self.o, self.gate_up, self.down))
        )


class BlockKV(NamedTuple):
    """Keys and values [slots, n_kv_heads, capacity, head_dim], and the same memory as rows [slots n_kv_heads capacity, head_dim]."""

    keys: Tensor
    values: Tensor
    key_rows: Tensor
    value_rows: Tensor

    @classmethod
    def empty(cls, n_slots: int, shape: BlockShape, capacity: int, device: torch.device) -> BlockKV:
        size = (n_slots, shape.n_kv_heads, capacity, shape.head_dim)
        keys, values = (torch.zeros(size, dtype=shape.dtype, device=device) for _ in range(2))
        return cls(keys, values, keys.view(-1, shape.head_dim), values.view(-1, shape.head_dim))


def load_block(pack: Pack, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> BlockWeights:
    """Raises ModelError when the pack is not a block of this model."""
    if pack.kind is not PackKind.BLOCK:
        raise ModelError(f"pack {pack.path.name} is no transformer block")
    return BlockWeights(
        load_vector(pack, "attn_norm", device),
        load_linear(pack, "qkv", config.d_model, device, dtype),
        load_linear(pack, "o", config.d_q, device, dtype),
        load_vector(pack, "ffn_norm", device),
        load_linear(pack, "gate_up", config.d_model, device, dtype),
        load_linear(pack, "down", config.d_ffn, device, dtype),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [R, heads, head_dim] by angles [R, 1, head_dim / 2]; dimension i turns with i + head_dim / 2, as Hugging Face stores them."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def before_attention(
    x: Tensor,
    block: BlockWeights,
    shape: BlockShape,
    angles: tuple[Tensor, Tensor],
    kv_index: Tensor,
    key_rows: Tensor,
    value_rows: Tensor,
    expand: Expand | None,
) -> Tensor:
    """Norm, queries, keys and values of x float32 [R, d_model]; writes keys and values to `kv_index` int64 [R n_kv_heads].

    Returns rotated queries [R, n_heads, head_dim] in the compute type. `angles` are cosines and sines [R, 1, head_dim / 2].
    """
    heads, kv_heads, dim = shape.n_heads, shape.n_kv_heads, shape.head_dim
    qkv = linear(rms_norm(x, block.attn_norm, shape.norm_eps), block.qkv, shape.dtype, expand)
    qkv = qkv.view(len(x), heads + 2 * kv_heads, dim)
    turned = rotate(qkv[:, : heads + kv_heads], *angles).to(shape.dtype)
    key_rows.index_copy_(0, kv_index, turned[:, heads:].reshape(-1, dim))
    value_rows.index_copy_(0, kv_index, qkv[:, heads + kv_heads :].reshape(-1, dim).to(shape.dtype))
    return turned[:, :heads]


def after_attention(x: Tensor, attended: Tensor, block: BlockWeights, shape: BlockShape, expand: Expand | None) -> Tensor:
    """Output projection and feed-forward part, each added to the residual stream x float32 [R, d_model].

    `attended` is [R, n_heads head_dim].
    """
    x = x + linear(attended.float(), block.o, shape.dtype, expand)
    gate_up = linear(rms_norm(x, block.ffn_norm, shape.norm_eps), block.gate_up, shape.dtype, expand)
    gate, up = gate_up[:, : shape.d_ffn], gate_up[:, shape.d_ffn :]
    return x + linear(functional.silu(gate) * up, block.down, shape.dtype, expand)


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """queries [B, S, n_heads, head_dim] over keys and values [B, n_kv_heads, L, head_dim]: [B, S, n_heads head_dim].

    `mask` [B, 1, S, L] is added to the scores. The query heads that share a key head stand beside each other as if they were more
    queries: no key is ever copied, and every SDPA kernel that takes a mask can compute it.
    """
    b, s, heads, dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    grouped = queries.view(b, s, kv_heads, group, dim).permute(0, 2, 3, 1, 4).reshape(b, kv_heads, group * s, dim)
    if s > 1:
        mask = mask.repeat(1, 1, group, 1)
    attended = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    return attended.view(b, kv_heads, group, s, dim).permute(0, 3, 1, 2, 4).reshape(b, s, heads * dim)


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
