"""Tiny GGUF models and Hugging Face checkpoints of the same weights, so that transformers can say what the logits should be."""

from __future__ import annotations

import json
import math
import re
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
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "SmolLM3ForCausalLM": "smollm3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "MixtralForCausalLM": "llama",
    "Qwen3MoeForCausalLM": "qwen3moe",
}
PERMUTED = ("llama", "smollm3")
NAMES = {
    "gate_up_proj": "ffn_up",
    "qkv_proj": "attn_qkv",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
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
    "w1": "ffn_gate",
    "w3": "ffn_up",
    "w2": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
EXPERT = re.compile(r"\.experts\.(\d+)\.")


def make_twins(
    directory: Path,
    matrices: GgmlType,
    kind: str = "llama",
    *,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    single_experts: bool = False,
    **shape: Any,
) -> tuple[Path, Path]:
    """A GGUF file whose matrices are of one type (the router in fp32), and a checkpoint in fp32 that means the same values.

    The values of quantised matrices are random codes: every code and every sub-scale occurs. Experts lie as converters write them,
    those of a block in one tensor, or as old ones did.
    """
    twin = make_checkpoint(directory / "twin", kind, **SHAPE | shape)
    config = json.loads((twin / "config.json").read_text())
    rng = np.random.default_rng(seed)
    state, tensors = load_file(twin / "model.safetensors"), rope_tensors(config)
    gemma = ARCHITECTURES[config["architectures"][0]].startswith("gemma")
    for name, values in state.items():
        ggml_type = matrices if values.ndim == 2 and not is_router(name) else types.F32
        heads = heads_of(name, config)
        if gemma and "norm" in name:
            values = values + np.float32(1)
        raw = stored(values if heads is None else permuted(values, heads), ggml_type, rng)
        tensors[gguf_name(name, gemma)] = (ggml_type, values.shape, raw.tobytes())
        if values.ndim == 1:
            continue
        meant = floats(ggml_type, raw.reshape(len(values), -1))
        state[name] = np.ascontiguousarray(meant if heads is None else unpermuted(meant, heads))
    save_file(state, twin / "model.safetensors", metadata={"format": "pt"})
    tensors = tensors if single_experts else with_stacked_experts(tensors)
    file = Written(described(config) | (metadata or {}), tensors).save(directory / "model.gguf")
    return file, twin


def is_router(name: str) -> bool:
    return name.endswith((".gate.weight", "ffn_gate_inp.weight"))


def with_stacked_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of single experts as one for all of a block."""
    found: dict[str, Tensor] = {}
    for name, (kind, shape, data) in tensors.items():
        match = re.fullmatch(r"(blk\.\d+\.ffn_\w+)\.\d+\.weight", name)
        if match is None:
            found[name] = kind, shape, data
        else:
            stacked = f"{match[1]}_exps.weight"
            _, (count, *_), before = found.get(stacked, (kind, (0,), b""))
            found[stacked] = kind, (count + 1, *shape), before + data
    return found


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
    if ARCHITECTURES[config["architectures"][0]] not in PERMUTED:
        return None
    if "q_proj" in name:
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if "k_proj" in name else None


def permuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """As llama.cpp's converter lays out the rows of Q and K for the llama architecture (`conversion/llama.py`, undo_permute)."""
    columns = values.shape[1:]
    return np.ascontiguousarray(values.reshape(heads, 2, -1, *columns).swapaxes(1, 2).reshape(values.shape))


def unpermuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    return values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def gguf_name(name: str, gemma: bool) -> str:
    if gemma and "post_attention_layernorm" in name:
        return f"blk.{name.split('.')[2]}.post_attention_norm.weight"
    part = next(gguf for hf, gguf in NAMES.items() if hf in name)
    prefix = f"blk.{name.split('.')[2]}." if name.startswith("model.layers.") else ""
    expert = EXPERT.search(name)
    return f"{prefix}{part}{f'.{expert[1]}' if expert else ''}.{name.rpartition('.')[2]}"


def described(config: dict[str, Any]) -> dict[str, Any]:
    """The metadata that a converter writes for a config, with a tokenizer of fillers."""
    a = ARCHITECTURES[config["architectures"][0]]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {
        "general.architecture": a,
        "general.name": "tiny",
        f"{a}.block_count": config["num_hidden_layers"],
        f"{a}.context_length": config["max_position_embeddings"],
        f"{a}.embedding_length": config["hidden_size"],
        f"{a}.feed_forward_length": config["intermediate_size"],
        f"{a}.attention.head_count": config["num_attention_heads"],
        f"{a}.attention.head_count_kv": config["num_key_value_heads"],
        f"{a}.attention.key_length": head_dim,
        f"{a}.attention.value_length": head_dim,
        f"{a}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{a}.rope.dimension_count": int(head_dim * rope_of(config, "full_attention").get("partial_rotary_factor", 1.0)),
        f"{a}.rope.freq_base": rope_of(config, "full_attention")["rope_theta"],
        **special(a, config),
        **tokenizer_metadata(config["vocab_size"]),
    }


def rope_of(config: dict[str, Any], kind: str) -> dict[str, Any]:
    rope: dict[str, Any] = config["rope_parameters"]
    return rope.get(kind, rope)


def rope_tensors(config: dict[str, Any]) -> dict[str, Tensor]:
    """What stands for rope scaling by frequency: `rope_freqs` for Llama 3.1, two lists for Phi-3."""
    rope = rope_of(config, "full_attention")
    match rope["rope_type"]:
        case "llama3":
            waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, config["head_dim"], 2) / config["head_dim"])
            turns = rope["original_max_position_embeddings"] / waves
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            smooth = np.clip((turns - low) / (high - low), 0, 1)
            lists = {"rope_freqs": 1 / ((1 - smooth) / rope["factor"] + smooth)}
        case "longrope":
            lists = {f"rope_factors_{name}": np.array(rope[f"{name}_factor"]) for name in ("short", "long")}
        case _:
            lists = {}
    return {f"{name}.weight": (types.F32, values.shape, values.astype("<f4").tobytes()) for name, values in lists.items()}


def special(a: str, config: dict[str, Any]) -> dict[str, Any]:
    """What converters write for some architectures only."""
    rope = rope_of(config, "full_attention")
    scaling = {}
    if rope["rope_type"] in ("linear", "yarn"):
        scaling = {f"{a}.rope.scaling.type": rope["rope_type"], f"{a}.rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        scaling[f"{a}.rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    n_experts = config.get("num_local_experts") or config.get("num_experts")
    experts = {f"{a}.expert_count": n_experts, f"{a}.expert_used_count": config["num_experts_per_tok"]} if n_experts else {}
    match a:
        case "gemma2":
            caps = ("attn_logit_softcapping", "final_logit_softcapping")
            return {f"{a}.{cap}": float(config[cap]) for cap in caps} | {
                f"{a}.attention.sliding_window": config["sliding_window"]
            }
        case "gemma3":
            return scaling | {
                f"{a}.attention.sliding_window": config["sliding_window"],
                f"{a}.attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config["layer_types"]],
                f"{a}.rope.freq_base_swa": rope_of(config, "sliding_attention")["rope_theta"],
            }
        case "phi3":
            original = config.get("original_max_position_embeddings") or config["max_position_embeddings"]
            stretch = config["max_position_embeddings"] / original
            factor = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
            return {
                f"{a}.attention.sliding_window": config["sliding_window"] or 0,
                f"{a}.rope.scaling.original_context_length": original,
                f"{a}.rope.scaling.attn_factor": factor,
            }
        case "qwen3moe":
            return experts | {f"{a}.expert_feed_forward_length": config["moe_intermediate_size"]}
        case _:
            return scaling | experts


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
