"""The mathematics of a transformer block in torch: pure functions over tensors, but for the KV rows that are written in place.

A block is cut at its attention, because the parts around it have shapes that depend on the number of rows alone. torch.compile makes few
kernels of them, once for all blocks and all positions.

The residual stream stays float32 whatever the compute type: it is d_model values per token, and rounding it costs accuracy in every block.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from mdi.engine.torch_experts import Mixture, load_mixture, mixture
from mdi.engine.torch_weights import Expand, Linear, linear, load_linear, load_vector
from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.families import Activation
from mdi.model.layout import block_layout
from mdi.model.packs import Pack, PackKind

Angles: TypeAlias = tuple[Tensor, Tensor]


class BlockShape(NamedTuple):
    """What the functions below need of a ModelConfig. `gelu`: the feed-forward part's activation is tanh-GELU, not SiLU."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    gelu: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, config: ModelConfig, dtype: torch.dtype) -> BlockShape:
        gelu = config.family.activation is Activation.GELU_TANH
        return cls(config.n_heads, config.n_kv_heads, config.head_dim, config.norm_eps, gelu, dtype)


class Layer(NamedTuple):
    """A linear layer with its bias float32 [N]."""

    parts: Linear
    bias: Tensor | None


class Gated(NamedTuple):
    """`gate_up` has the rows of gate above those of up."""

    gate_up: Layer
    down: Layer


class BlockWeights(NamedTuple):
    """Norms are float32; those that a family does without are None. Norms of queries and keys are [head_dim]."""

    attn_norm: Tensor
    qkv: Layer
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Layer
    attn_out_norm: Tensor | None
    ffn_norm: Tensor
    ffn: Gated | Mixture
    ffn_out_norm: Tensor | None


def load_block(pack: Pack, config: ModelConfig, number: int, device: torch.device, dtype: torch.dtype) -> BlockWeights:
    """Block `number` of the model. Raises ModelError when the pack is not it."""
    if pack.kind is not PackKind.BLOCK:
        raise ModelError(f"pack {pack.path.name} is no transformer block")
    shapes = {placed.part.name: placed.shape for placed in block_layout(config, number)}

    def vector(name: str) -> Tensor:
        return load_vector(pack, name, device, shapes[name])

    def optional(name: str) -> Tensor | None:
        return vector(name) if name in shapes else None

    def layer(name: str) -> Layer:
        rows, columns = shapes[name]
        return Layer(load_linear(pack, name, columns, device, dtype, rows=rows), optional(f"{name}.bias"))

    def feed_forward() -> Gated | Mixture:
        if "router" in shapes and config.experts is not None:
            return load_mixture(pack, config.experts, config.d_model, device, dtype)
        return Gated(layer("gate_up"), layer("down"))

    return BlockWeights(
        vector("attn_norm"),
        layer("qkv"),
        optional("q_norm"),
        optional("k_norm"),
        layer("o"),
        optional("attn_out_norm"),
        vector("ffn_norm"),
        feed_forward(),
        optional("ffn_out_norm"),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [R, heads, head_dim] by angles [R, 1, n]: dimension i turns with i + n, as Hugging Face stores them; those from 2 n on do not."""
    n = cos.shape[-1]
    first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def before_attention(
    x: Tensor,
    block: BlockWeights,
    shape: BlockShape,
    angles: Angles | None,
    kv_index: Tensor,
    key_rows: Tensor,
    value_rows: Tensor,
    expand: Expand | None,
) -> Tensor:
    """Norm, queries, keys and values of x float32 [R, d_model]; writes keys and values to `kv_index` int64 [R n_kv_heads].

    Returns rotated queries [R, n_heads, head_dim] in the compute type. `angles` are cosines and sines [R, 1, rotated / 2]; None: this
    block does not rotate.
    """
    heads, kv_heads, dim = shape.n_heads, shape.n_kv_heads, shape.head_dim
    qkv = _layer(rms_norm(x, block.attn_norm, shape.norm_eps), block.qkv, shape, expand)
    qkv = qkv.view(len(x), heads + 2 * kv_heads, dim)
    turned = qkv[:, : heads + kv_heads]
    if block.q_norm is not None and block.k_norm is not None:
        queries = rms_norm(turned[:, :heads], block.q_norm, shape.norm_eps)
        turned = torch.cat((queries, rms_norm(turned[:, heads:], block.k_norm, shape.norm_eps)), dim=1)
    if angles is not None:
        turned = rotate(turned, *angles)
    turned = turned.to(shape.dtype)
    key_rows.index_copy_(0, kv_index, turned[:, heads:].reshape(-1, dim))
    value_rows.index_copy_(0, kv_index, qkv[:, heads + kv_heads :].reshape(-1, dim).to(shape.dtype))
    return turned[:, :heads]


def after_attention(
    x: Tensor, attended: Tensor, block: BlockWeights, shape: BlockShape, expand: Expand | None, static: bool
) -> Tensor:
    """Output projection and feed-forward part, each added to the residual stream x float32 [R, d_model].

    `attended` is [R, n_heads head_dim]. `static`: nothing that is done may depend on values (see `torch_experts.py`).
    """
    x = x + _out_norm(_layer(attended.float(), block.o, shape, expand), block.attn_out_norm, shape)
    normed = rms_norm(x, block.ffn_norm, shape.norm_eps)
    if isinstance(block.ffn, Mixture):
        out = mixture(normed, block.ffn, shape.dtype, expand, static=static)
    else:
        gate, up = _layer(normed, block.ffn.gate_up, shape, expand).chunk(2, dim=-1)
        gate = functional.gelu(gate, approximate="tanh") if shape.gelu else functional.silu(gate)
        out = _layer(gate * up, block.ffn.down, shape, expand)
    return x + _out_norm(out, block.ffn_out_norm, shape)


def _layer(x: Tensor, layer: Layer, shape: BlockShape, expand: Expand | None) -> Tensor:
    product = linear(x, layer.parts, shape.dtype, expand)
    return product if layer.bias is None else product + layer.bias


def _out_norm(x: Tensor, weight: Tensor | None, shape: BlockShape) -> Tensor:
    return x if weight is None else rms_norm(x, weight, shape.norm_eps)
