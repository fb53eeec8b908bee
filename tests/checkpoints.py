"""Makers of tiny random Hugging Face checkpoints, by transformers itself: what they write is what users download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

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
# Every kind of checkpoint that is supported, by what is special about it.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-no-gqa": {"num_key_value_heads": 4},
    "llama-one-kv-head": {"num_key_value_heads": 1},
    "llama-wide-heads": {"head_dim": 32},
    "llama-3.1-rope": {"rope_parameters": LLAMA3_ROPE},
    "llama-linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": 16},
}


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

    Weights are ten times larger than transformers' initial ones and norms are not 1, so that a mistake anywhere shows in the
    logits. A small `shard_size` ("40KB") gives several files and an index.
    """
    values = TINY | KINDS[kind] | overrides
    model: LlamaForCausalLM | MistralForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind.startswith("mistral"):
            model = MistralForCausalLM(MistralConfig(**values, initializer_range=0.2))
        else:
            model = LlamaForCausalLM(LlamaConfig(**values, initializer_range=0.2))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard_size)
    return directory


def edit_json(path: Path, *without: str, **changes: Any) -> None:
    """Changes fields of a JSON file, and removes those in `without`."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if name not in without}))
