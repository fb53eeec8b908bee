"""The shapes of real models by name, for checkpoints with random weights: speed and memory depend on the shape alone.

Numbers are those of the published `config.json` files. `--vocab` and `--blocks` cut a shape where only a part matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mdi.errors import UserError

BOS, IM_START, IM_END = 0, 1, 2  # ids in the vocabulary that tools.make_checkpoint makes
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MIN_VOCAB = len(SPECIAL_TOKENS) + 256  # one token for every byte

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """One dense decoder: `hidden` = d_model, `ffn` = inner width of the feed-forward part, `tied` = head is the embedding."""

    vocab: int
    hidden: int
    ffn: int
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rms_eps: float = 1e-5
    tied: bool = False
    model_type: str = "llama"  # or "mistral"

    def __post_init__(self) -> None:
        if self.vocab < MIN_VOCAB:
            raise UserError(f"a vocabulary of {self.vocab} tokens cannot hold every byte", hint=f"--vocab {MIN_VOCAB} or more")
        if self.blocks < 1:
            raise UserError(f"a model needs at least one block, not {self.blocks}", hint="--blocks 1 or more")

    def cut(self, *, vocab: int | None = None, blocks: int | None = None) -> Shape:
        return replace(self, vocab=vocab or self.vocab, blocks=blocks or self.blocks)

    def matrices(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor by its Hugging Face name with its shape, (out, in) for a matrix, in the order of a forward pass."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for i in range(self.blocks):
            block = f"model.layers.{i}"
            yield f"{block}.input_layernorm.weight", (self.hidden,)
            yield f"{block}.self_attn.q_proj.weight", (queries, self.hidden)
            yield f"{block}.self_attn.k_proj.weight", (keys, self.hidden)
            yield f"{block}.self_attn.v_proj.weight", (keys, self.hidden)
            yield f"{block}.self_attn.o_proj.weight", (self.hidden, queries)
            yield f"{block}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{block}.mlp.gate_proj.weight", (self.ffn, self.hidden)
            yield f"{block}.mlp.up_proj.weight", (self.ffn, self.hidden)
            yield f"{block}.mlp.down_proj.weight", (self.hidden, self.ffn)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)

    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.matrices())

    def config(self, dtype: str) -> dict[str, Any]:
        """The `config.json` of the Hugging Face directory; `dtype` in torch's words."""
        return {
            "architectures": ["MistralForCausalLM" if self.model_type == "mistral" else "LlamaForCausalLM"],
            "model_type": self.model_type,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_eps,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "sliding_window": None,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": self.tied,
            "bos_token_id": BOS,
            "eos_token_id": IM_END,
            "torch_dtype": dtype,
            "use_cache": True,
        }


SHAPES = {
    "llama-3.2-1b": Shape(
        128_256, 2048, 8192, 16, 32, 8, 64, 131_072, rope_theta=500_000.0, rope_scaling=LLAMA3_ROPE, tied=True
    ),
    "tinyllama-1.1b": Shape(32_000, 2048, 5632, 22, 32, 4, 64, 2048),
    "llama-7b": Shape(32_000, 4096, 11_008, 32, 32, 32, 128, 4096),
    "llama-3-8b": Shape(128_256, 4096, 14_336, 32, 32, 8, 128, 8192, rope_theta=500_000.0),
    "mistral-7b": Shape(32_768, 4096, 14_336, 32, 32, 8, 128, 32_768, rope_theta=1_000_000.0, model_type="mistral"),
    "tiny": Shape(512, 64, 160, 2, 4, 2, 16, 256),  # for tests of the tools
}


def named_shape(name: str, *, vocab: int | None = None, blocks: int | None = None) -> Shape:
    """The shape called `name`, cut to `vocab` tokens and `blocks` blocks where given; `UserError` where there is none."""
    if name not in SHAPES:
        raise UserError(f"no shape is called {name!r}", hint=f"one of: {', '.join(SHAPES)}")
    return SHAPES[name].cut(vocab=vocab, blocks=blocks)
