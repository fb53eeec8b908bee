"""The demo model's network: a small Llama in plain torch, with fake quantisation so that training sees int4 rounding.

Tensor names and layouts are those of Hugging Face's `LlamaForCausalLM` (rotary halves split, head tied to the embedding), so a
state dict is a checkpoint. Shapes: B sequences, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

QUANT_BLOCK = 128  # weights that share one scale, along in_features: what the runtime takes by default
Quantiser = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """The model's dimensions, under the names that config.json gives them."""

    vocab_size: int = 640
    hidden_size: int = 128
    num_hidden_layers: int = 10
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 384
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    def hf_config(self, *, bos_token_id: int, eos_token_id: int, pad_token_id: int) -> dict[str, object]:
        """What `config.json` holds."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
            "initializer_range": 0.02,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        }


def fake_quantise(weight: Tensor, bits: int, block: int = QUANT_BLOCK) -> Tensor:
    """Rounds [out, in] to `bits` (4 or 8) per `block` of inputs, symmetric; the gradient passes straight through.

    The scale is the signed value of largest magnitude divided by -2**(bits-1), so that this value is exact.
    """
    levels = 2 ** (bits - 1)
    blocks = weight.detach().float().unflatten(-1, (-1, block))
    high, low = blocks.amax(-1, keepdim=True), blocks.amin(-1, keepdim=True)
    peak = torch.where(high > -low, high, low)
    scale = torch.where(peak == 0, 1.0, peak / -levels)
    rounded = (blocks / scale).round_().clamp_(-levels, levels - 1).mul_(scale).flatten(-2)
    return weight + (rounded - weight.detach())


def fake_quantise_rows(x: Tensor, block: int = QUANT_BLOCK) -> Tensor:
    """What int8 activations do: each row of [..., in] rounded to -127..127 per `block` of inputs."""
    blocks = x.unflatten(-1, (-1, block))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-12)
    return ((blocks / scale).round() * scale).flatten(-2)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each [T, head_dim], in the split-half layout."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = positions.float()[:, None] * inverse
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns [B, heads, T, head_dim] by its positions."""
    low, high = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat((-high, low), -1) * sin.to(x.dtype)


class Linear(nn.Linear):
    """A linear layer without bias whose weight passes through the model's current quantiser."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.quantise: Quantiser | None = None
        self.quantise_input = False

    def forward(self, x: Tensor) -> Tensor:
        if self.quantise_input:
            x = fake_quantise_rows(x)
        return functional.linear(x, self.weight if self.quantise is None else self.quantise(self.weight))


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.groups = shape.num_attention_heads // shape.num_key_value_heads
        q_width, kv_width = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
        self.q_proj = Linear(shape.hidden_size, q_width)
        self.k_proj = Linear(shape.hidden_size, kv_width)
        self.v_proj = Linear(shape.hidden_size, kv_width)
        self.o_proj = Linear(q_width, shape.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: list[Tensor] | None) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is not None:
            if past:
                k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
            past[:] = [k, v]
        # Written out: at these sizes the fused kernel's bf16 backward pass takes longer than the rest of the network.
        rows, length = q.shape[2], k.shape[2]
        q = q.unflatten(1, (-1, self.groups)).flatten(2, 3)  # [B, kv heads, groups * T, head_dim]
        scores = (q @ k.transpose(2, 3)).unflatten(2, (self.groups, rows)) * self.head_dim**-0.5
        future = torch.ones(rows, length, dtype=torch.bool).triu(length - rows + 1)
        weights = scores.masked_fill(future, -1e4).softmax(-1).to(v.dtype).flatten(2, 3)
        mixed = (weights @ v).unflatten(2, (self.groups, rows)).flatten(1, 2)  # [B, heads, T, head_dim]
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: list[Tensor] | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)


class Network(nn.Module):
    """Token ids [B, T] to logits; `past` is a list of one empty list per block to keep keys and values in, or None."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.head_bits: int | None = None
        self.head_block = QUANT_BLOCK
        self.quantise_input = False
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                depth = (2 * shape.num_hidden_layers) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 / depth)

    def simulate(self, bits: int | None, *, block: int = QUANT_BLOCK, int8_activations: bool = False) -> None:
        """From now on every linear layer and the head compute with weights rounded to `bits` (None: as they are)."""
        self.head_bits, self.head_block, self.quantise_input = bits, block, int8_activations
        for module in self.modules():
            if isinstance(module, Linear):
                module.quantise = None if bits is None else lambda weight: fake_quantise(weight, bits, block)
                module.quantise_input = int8_activations

    def hidden(self, ids: Tensor, past: list[list[Tensor]] | None = None) -> Tensor:
        """The normalised last hidden state [B, T, D]."""
        start = past[0][0].shape[2] if past and past[0] else 0
        positions = torch.arange(start, start + ids.shape[1])
        cos, sin = rotary(positions, self.shape.head_dim, self.shape.rope_theta)
        x = self.model.embed_tokens(ids)
        for index, block in enumerate(self.model.layers):
            x = block(x, cos, sin, None if past is None else past[index])
        return self.model.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of normalised hidden states [..., D]."""
        weight = self.model.embed_tokens.weight
        hidden = fake_quantise_rows(hidden) if self.quantise_input else hidden
        return functional.linear(
            hidden, weight if self.head_bits is None else fake_quantise(weight, self.head_bits, self.head_block)
        )

    def forward(self, ids: Tensor, past: list[list[Tensor]] | None = None) -> Tensor:
        return self.head(self.hidden(ids, past))
