"""The shapes of well-known models by name, to plan for them without their files.

The numbers are those of the `config.json` files that their publishers put on Hugging Face (the repository stands beside each); what a shape
does not say means what it means in such a file. Only what decides about speed and memory is here: no weights, no tokenizer.
"""

from __future__ import annotations

from typing import Any

from mdi.errors import ModelError
from mdi.model.config import ModelConfig

LLAMA, MISTRAL, MIXTRAL = "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"
QWEN2, QWEN3, QWEN3_MOE = "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"
GEMMA2, PHI3, SMOLLM3 = "Gemma2ForCausalLM", "Phi3ForCausalLM", "SmolLM3ForCausalLM"


def _shape(
    architecture: str, vocab: int, d_model: int, d_ffn: int, blocks: int, heads: int, kv_heads: int, positions: int, **more: Any
) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "vocab_size": vocab,
        "hidden_size": d_model,
        "intermediate_size": d_ffn,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
        "tie_word_embeddings": False,
        **more,
    }


# vocabulary, d_model, d_ffn, blocks, heads, kv heads, positions
SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": _shape(LLAMA, 32_000, 4096, 11_008, 32, 32, 32, 4096),  # meta-llama/Llama-2-7b-hf
    "llama-13b": _shape(LLAMA, 32_000, 5120, 13_824, 40, 40, 40, 4096),  # meta-llama/Llama-2-13b-hf
    "llama-70b": _shape(LLAMA, 32_000, 8192, 28_672, 80, 64, 8, 4096),  # meta-llama/Llama-2-70b-hf
    "llama-3-8b": _shape(LLAMA, 128_256, 4096, 14_336, 32, 32, 8, 8192),  # meta-llama/Meta-Llama-3-8B
    "llama-3.1-8b": _shape(LLAMA, 128_256, 4096, 14_336, 32, 32, 8, 131_072),  # meta-llama/Llama-3.1-8B
    "llama-3.1-70b": _shape(LLAMA, 128_256, 8192, 28_672, 80, 64, 8, 131_072),  # meta-llama/Llama-3.1-70B
    "llama-3.1-405b": _shape(LLAMA, 128_256, 16_384, 53_248, 126, 128, 8, 131_072),  # meta-llama/Llama-3.1-405B
    "llama-3.2-1b": _shape(  # meta-llama/Llama-3.2-1B
        LLAMA, 128_256, 2048, 8192, 16, 32, 8, 131_072, head_dim=64, tie_word_embeddings=True
    ),
    "llama-3.2-3b": _shape(  # meta-llama/Llama-3.2-3B
        LLAMA, 128_256, 3072, 8192, 28, 24, 8, 131_072, head_dim=128, tie_word_embeddings=True
    ),
    "tinyllama-1.1b": _shape(LLAMA, 32_000, 2048, 5632, 22, 32, 4, 2048),  # TinyLlama/TinyLlama-1.1B-Chat-v1.0
    "mistral-7b": _shape(MISTRAL, 32_768, 4096, 14_336, 32, 32, 8, 32_768, sliding_window=None),  # mistralai/Mistral-7B-v0.3
    "mixtral-8x7b": _shape(  # mistralai/Mixtral-8x7B-v0.1
        MIXTRAL, 32_000, 4096, 14_336, 32, 32, 8, 32_768, sliding_window=None, num_local_experts=8, num_experts_per_tok=2
    ),
    "qwen2.5-0.5b": _shape(QWEN2, 151_936, 896, 4864, 24, 14, 2, 32_768, tie_word_embeddings=True),  # Qwen/Qwen2.5-0.5B
    "qwen2.5-1.5b": _shape(QWEN2, 151_936, 1536, 8960, 28, 12, 2, 131_072, tie_word_embeddings=True),  # Qwen/Qwen2.5-1.5B
    "qwen2.5-7b": _shape(QWEN2, 152_064, 3584, 18_944, 28, 28, 4, 131_072),  # Qwen/Qwen2.5-7B
    "qwen2.5-32b": _shape(QWEN2, 152_064, 5120, 27_648, 64, 40, 8, 131_072),  # Qwen/Qwen2.5-32B
    "qwen3-0.6b": _shape(  # Qwen/Qwen3-0.6B
        QWEN3, 151_936, 1024, 3072, 28, 16, 8, 40_960, head_dim=128, tie_word_embeddings=True
    ),
    "qwen3-8b": _shape(QWEN3, 151_936, 4096, 12_288, 36, 32, 8, 40_960, head_dim=128),  # Qwen/Qwen3-8B
    "qwen3-32b": _shape(QWEN3, 151_936, 5120, 25_600, 64, 64, 8, 40_960, head_dim=128),  # Qwen/Qwen3-32B
    "qwen3-30b-a3b": _shape(  # Qwen/Qwen3-30B-A3B
        QWEN3_MOE,
        151_936,
        2048,
        6144,
        48,
        32,
        4,
        40_960,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=True,
    ),
    "gemma-2-2b": _shape(  # google/gemma-2-2b
        GEMMA2,
        256_000,
        2304,
        9216,
        26,
        8,
        4,
        8192,
        head_dim=256,
        sliding_window=4096,
        query_pre_attn_scalar=256,
        tie_word_embeddings=True,
    ),
    "phi-3-mini": _shape(PHI3, 32_064, 3072, 8192, 32, 32, 32, 4096),  # microsoft/Phi-3-mini-4k-instruct
    "smollm3-3b": _shape(  # HuggingFaceTB/SmolLM3-3B
        SMOLLM3, 128_256, 2048, 11_008, 36, 16, 4, 65_536, tie_word_embeddings=True
    ),
}


def known_config(name: str) -> ModelConfig:
    """The shape called `name`. Raises ModelError with the names that there are."""
    if name not in SHAPES:
        raise ModelError(f"no model shape is called {name[:60]!r}", hint=f"one of: {', '.join(SHAPES)}")
    return ModelConfig.from_hf(SHAPES[name], name)
