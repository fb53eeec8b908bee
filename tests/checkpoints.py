"""Makers of tiny random Hugging Face checkpoints, by transformers itself: what they write is what users download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GEMMA: dict[str, Any] = TOKENS | {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 16}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0],
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
}
QWEN3_MOE: dict[str, Any] = TOKENS | {
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 64,
    "mlp_only_layers": [1],
}
CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "smollm3": SmolLM3Config,
    "phi3": Phi3Config,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "mixtral": MixtralConfig,
    "qwen3moe": Qwen3MoeConfig,
}
# Every kind of checkpoint that is supported, by its family (the first word) and what is special about it.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-no-gqa": {"num_key_value_heads": 4},
    "llama-one-kv-head": {"num_key_value_heads": 1},
    "llama-wide-heads": {"head_dim": 32},
    "llama-3.1-rope": {"rope_parameters": LLAMA3_ROPE},
    "llama-linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    "llama-yarn": {"rope_parameters": YARN | {"beta_fast": 4.0, "beta_slow": 0.5, "mscale": 0.7, "mscale_all_dim": 1.4}},
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": 16},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": TOKENS | {"tie_word_embeddings": True},
    "qwen2-window": TOKENS | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "qwen2-yarn": TOKENS | {"rope_parameters": YARN},
    "qwen3": TOKENS | {"head_dim": 32},
    "qwen3-yarn": TOKENS | {"head_dim": 32, "rope_parameters": YARN | {"truncate": False, "attention_factor": 1.3}},
    "qwen3-biases": TOKENS | {"head_dim": 16, "attention_bias": True},
    "smollm3": TOKENS | {"no_rope_layer_interval": 2},
    "smollm3-window": TOKENS | {"no_rope_layers": [1, 0, 0, 1, 1], "use_sliding_window": True, "sliding_window": 16},
    "phi3": TOKENS | {"sliding_window": 24},
    "phi3-short": TOKENS | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128},
    "phi3-long": TOKENS | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
    "phi3-partial": TOKENS
    | {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "original_max_position_embeddings": 32,
        "rope_parameters": LONGROPE | {"partial_rotary_factor": 0.5},
    },
    "gemma2": GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "gemma2-no-softcaps": GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3": GEMMA
    | {
        "sliding_window_pattern": 3,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
    "mixtral": {"num_local_experts": 4},
    "qwen3moe": QWEN3_MOE,
    "qwen3moe-normalised": QWEN3_MOE | {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 2},
}


def hf_config(kind: str, **overrides: Any) -> PreTrainedConfig:
    """transformers' own config of one of `KINDS`."""
    return CONFIGS[kind.split("-")[0]](**TINY | KINDS[kind] | {"initializer_range": 0.2} | overrides)


def make_checkpoint(
    directory: Path,
    kind: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "5GB",
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Saves a random model of one of `KINDS`, its config overridden by `overrides`, and returns its directory.

    Weights are ten times larger than transformers' initial ones, norms are not 1 and biases not 0, so that a mistake anywhere shows
    in the logits. A small `shard_size` ("40KB") gives several files and an index.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(hf_config(kind, **overrides))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
                elif name.endswith("bias"):
                    parameter.uniform_(-0.5, 0.5)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard_size)
    return directory


def edit_json(path: Path, *without: str, **changes: Any) -> None:
    """Changes fields of a JSON file, and removes those in `without`."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if name not in without}))
