"""Tiny GGUF models and Hugging Face checkpoints of the same weights, so that transformers can say what the logits should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from mdi.model.gguf import types
from mdi.model.gguf.convert import floats
from mdi.model.gguf.types import GgmlType
from tests.checkpoints import make_checkpoint
from tests.model.gguf.written import Tensor, Written, random_rows
from tools.make_checkpoint import filler_vocabulary
from tools.shapes import BOS, CHAT_TEMPLATE, IM_END, SPECIAL_TOKENS

SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}  # rows of whole K blocks
STD = 0.05  # of weights: about what keeps activations at their size, as trained ones do
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama"}
NAMES = {
    "embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def make_twins(
    directory: Path,
    matrices: GgmlType,
    kind: str = "llama",
    *,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    **shape: Any,
) -> tuple[Path, Path]:
    """A GGUF file whose matrices are of one type, and a checkpoint in fp32 that means the same values.

    The values of quantised matrices are random codes: every code and every sub-scale occurs.
    """
    twin = make_checkpoint(directory / "twin", kind, **SHAPE | shape)
    config = json.loads((twin / "config.json").read_text())
    rng = np.random.default_rng(seed)
    state, tensors = load_file(twin / "model.safetensors"), dict[str, Tensor]()
    for name, values in state.items():
        ggml_type = matrices if values.ndim == 2 else types.F32
        heads = heads_of(name, config)
        raw = stored(values if heads is None else permuted(values, heads), ggml_type, rng)
        tensors[gguf_name(name)] = (ggml_type, values.shape, raw.tobytes())
        meant = floats(ggml_type, raw.reshape(len(values) if values.ndim == 2 else 1, -1)).reshape(values.shape)
        state[name] = np.ascontiguousarray(meant if heads is None else unpermuted(meant, heads))
    save_file(state, twin / "model.safetensors", metadata={"format": "pt"})
    file = Written(described(config) | (metadata or {}), tensors).save(directory / "model.gguf")
    return file, twin


def stored(values: NDArray[np.float32], ggml_type: GgmlType, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Bytes in the file: random ones for block formats, the values themselves for floats."""
    match ggml_type.name:
        case "F32":
            return values.view(np.uint8)
        case "F16":
            return values.astype(np.float16).view(np.uint8)
        case "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        case _:
            return random_rows(ggml_type, *values.shape, rng, std=STD)


def heads_of(name: str, config: dict[str, Any]) -> int | None:
    if "q_proj" in name:
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if "k_proj" in name else None


def permuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """As llama.cpp's converter lays out the rows of Q and K for the llama architecture (`conversion/llama.py`, undo_permute)."""
    return np.ascontiguousarray(values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape))


def unpermuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    return values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def gguf_name(name: str) -> str:
    part = next(gguf for hf, gguf in NAMES.items() if hf in name)
    prefix = f"blk.{name.split('.')[2]}." if name.startswith("model.layers.") else ""
    return f"{prefix}{part}.{name.rpartition('.')[2]}"


def described(config: dict[str, Any]) -> dict[str, Any]:
    """The metadata that a converter writes for a config, with a tokenizer of fillers."""
    a = ARCHITECTURES[config["architectures"][0]]
    return {
        "general.architecture": a,
        "general.name": "tiny",
        f"{a}.block_count": config["num_hidden_layers"],
        f"{a}.context_length": config["max_position_embeddings"],
        f"{a}.embedding_length": config["hidden_size"],
        f"{a}.feed_forward_length": config["intermediate_size"],
        f"{a}.attention.head_count": config["num_attention_heads"],
        f"{a}.attention.head_count_kv": config["num_key_value_heads"],
        f"{a}.attention.key_length": config["head_dim"],
        f"{a}.attention.value_length": config["head_dim"],
        f"{a}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{a}.rope.dimension_count": config["head_dim"],
        f"{a}.rope.freq_base": 10_000.0,
        **tokenizer_metadata(config["vocab_size"]),
    }


def tokenizer_metadata(size: int) -> dict[str, Any]:
    tokens, merges = filler_vocabulary(size)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL_TOKENS) + [1] * (size - len(SPECIAL_TOKENS)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": IM_END,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
