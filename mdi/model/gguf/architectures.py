"""The architectures of GGUF files, one row each: which family it is, how its tensors are named, what its metadata leave unsaid.

Names and defaults are those of llama.cpp (`gguf-py/gguf/constants.py`, `src/llama-arch.cpp`, `src/models/`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from mdi.errors import ModelError
from mdi.model.config import MAX_BLOCKS
from mdi.model.fields import Fields
from mdi.model.gguf.experts import HfValues, mixtral, qwen3moe

OUTER = MappingProxyType(
    {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
)
# Modules of one block, by their Hugging Face names.
PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
SANDWICH_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
COMMON = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",  # of Phi-3: twice as high as ffn_up elsewhere
    "mlp.down_proj": "ffn_down",
}
MIXTRAL = {"block_sparse_moe.gate": "ffn_gate_inp"}
MIXTRAL_EXPERT = {"w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down"}
QWEN_MOE = {"mlp.gate": "ffn_gate_inp"}
QWEN_EXPERT = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"model\.layers\.(\d+)\..+\.experts\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True, slots=True)
class Architecture:
    """`paired`: rows of Q and K lie as rotated pairs, not as rotated halves. `experts`: an expert's matrices."""

    name: str
    hf: str
    modules: Mapping[str, str] = field(default_factory=lambda: COMMON | PRE_NORMS)
    paired: bool = False
    extra: Callable[[Fields, HfValues], HfValues] = lambda fields, values: {}
    experts: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> str | None:
        """The file's name of a tensor, given Hugging Face's; None for one that GGUF has no name for."""
        if name in OUTER:
            return OUTER[name]
        match = _BLOCK.fullmatch(name)
        module = self.modules.get(match[2]) if match else None
        return f"blk.{match[1]}.{module}.{match[3]}" if match and module else None

    def expert(self, name: str) -> tuple[str, str, str] | None:
        """Block, module and expert, given Hugging Face's name of an expert's matrix; None for another tensor."""
        match = _EXPERT.fullmatch(name)
        module = self.experts.get(match[3]) if match else None
        return (match[1], module, match[2]) if match and module else None


def _windows(fields: Fields, values: HfValues, *, default: int | None, period: int) -> HfValues:
    """`sliding_window` and which blocks have it: all but every `period`-th, unless the file says otherwise."""
    key = f"{fields.text('general.architecture')}.attention.sliding_window"
    window = fields.optional_integer(key, default, least=0)
    n_blocks, pattern = values["num_hidden_layers"], fields.values.get(f"{key}_pattern")
    if n_blocks > MAX_BLOCKS:
        raise ModelError(f"{fields.origin} has {n_blocks} blocks, more than {MAX_BLOCKS}")
    if isinstance(pattern, np.ndarray):
        if pattern.shape != (n_blocks,):
            raise ModelError(f"{key}_pattern in {fields.origin} tells of {pattern.size} blocks, and the model has {n_blocks}")
        local = [bool(entry) for entry in pattern]
    else:
        every = fields.integer(f"{key}_pattern", period)
        local = [(block + 1) % every != 0 for block in range(n_blocks)]
    kinds = ["sliding_attention" if entry and window else "full_attention" for entry in local]
    return {"sliding_window": window or None, "layer_types": kinds}


def _gemma_scale(values: HfValues, blocks_27b: int) -> HfValues:
    """Of the 27B models alone the scale of attention is not that of the head's size; files do not say it."""
    per_head = values["hidden_size"] // values["num_attention_heads"]
    return {"query_pre_attn_scalar": per_head if values["num_hidden_layers"] == blocks_27b else values["head_dim"]}


def _gemma2(fields: Fields, values: HfValues) -> HfValues:
    return {
        **_windows(fields, values, default=4096, period=2),
        **_gemma_scale(values, 46),
        "attn_logit_softcapping": fields.number("gemma2.attn_logit_softcapping", 50.0),
        "final_logit_softcapping": fields.number("gemma2.final_logit_softcapping", 30.0),
    }


def _gemma3(fields: Fields, values: HfValues) -> HfValues:
    has_softcap = "gemma3.final_logit_softcapping" in fields.values
    return {
        **_windows(fields, values, default=None, period=6),
        **_gemma_scale(values, 62),
        "rope_local_base_freq": fields.number("gemma3.rope.freq_base_swa", 10_000.0),
        "final_logit_softcapping": fields.number("gemma3.final_logit_softcapping") if has_softcap else None,
        "attn_logit_softcapping": None,
    }


def _phi3(fields: Fields, values: HfValues) -> HfValues:
    window = fields.optional_integer("phi3.attention.sliding_window", least=0)
    original = fields.integer("phi3.rope.scaling.original_context_length", values["max_position_embeddings"])
    return {"sliding_window": window or None, "original_max_position_embeddings": original}


def _no_window(fields: Fields, values: HfValues) -> HfValues:
    return {"use_sliding_window": False, "sliding_window": None}


def _smollm3(fields: Fields, values: HfValues) -> HfValues:
    return _no_window(fields, values) | {"no_rope_layer_interval": 4}  # files do not say it, and llama.cpp knows no other


_SANDWICH = COMMON | SANDWICH_NORMS
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        row.name: row
        for row in (
            Architecture("llama", "LlamaForCausalLM", paired=True),  # Mistral too: the file does not tell them apart
            Architecture("qwen2", "Qwen2ForCausalLM", extra=_no_window),
            Architecture("qwen3", "Qwen3ForCausalLM", extra=_no_window),
            Architecture("smollm3", "SmolLM3ForCausalLM", paired=True, extra=_smollm3),
            Architecture("gemma2", "Gemma2ForCausalLM", _SANDWICH, extra=_gemma2),
            Architecture("gemma3", "Gemma3ForCausalLM", _SANDWICH, extra=_gemma3),
            Architecture("phi3", "Phi3ForCausalLM", extra=_phi3),
        )
    }
)
# Those that hold experts. Mixtral calls itself llama, with a number of experts.
MIXTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        row.name: row
        for row in (
            Architecture(
                "llama", "MixtralForCausalLM", COMMON | PRE_NORMS | MIXTRAL, paired=True, extra=mixtral, experts=MIXTRAL_EXPERT
            ),
            Architecture("qwen3moe", "Qwen3MoeForCausalLM", COMMON | PRE_NORMS | QWEN_MOE, extra=qwen3moe, experts=QWEN_EXPERT),
        )
    }
)


def architecture_of(fields: Fields) -> Architecture:
    """Raises ModelError with the list of what is known."""
    name = fields.text("general.architecture")
    if name not in ARCHITECTURES and name not in MIXTURES:
        raise ModelError(
            f"{fields.origin} holds a model of the architecture {name!r:.80}, which is not supported",
            hint=f"choose a model that is one of: {', '.join({**ARCHITECTURES, **MIXTURES})}",
        )
    if name in ARCHITECTURES and not fields.integer(f"{name}.expert_count", 0, least=0):
        return ARCHITECTURES[name]
    if name not in MIXTURES:
        raise ModelError(f"{fields.origin} is a mixture of experts, which is not supported for {name} in GGUF files")
    return MIXTURES[name]


def paired_to_halves(n_heads: int, n_rows: int) -> list[int]:
    """Which row of the file each row of ours is: files interleave a head's two halves, so that pairs to rotate lie side by side."""
    half = n_rows // n_heads // 2
    return [head * 2 * half + 2 * i + part for head in range(n_heads) for part in (0, 1) for i in range(half)]
