"""From GGUF metadata to a ModelConfig, by way of the config.json that the same model has at Hugging Face.

So whatever `ModelConfig.from_hf` learns about a family holds for both worlds.
"""

from __future__ import annotations

import math
from typing import Any

from mdi.errors import ModelError
from mdi.model.config import MAX_WIDTH, ModelConfig
from mdi.model.fields import Fields
from mdi.model.gguf import types
from mdi.model.gguf.architectures import Architecture, architecture_of
from mdi.model.gguf.convert import floats
from mdi.model.gguf.experts import HfValues
from mdi.model.gguf.files import Gguf
from mdi.model.gguf.vocabulary import special_id

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
# Keys of llama.cpp that change the mathematics, in ways that no family here computes.
REFUSED = (
    "attention.scale",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "attention.clamp_kqv",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
)


def read_config(gguf: Gguf) -> ModelConfig:
    """Raises ModelError naming the architecture, or the key that is missing, wrong, or asks for something that is not computed here."""
    fields = gguf.fields
    return ModelConfig.from_hf(hf_config(gguf, architecture_of(fields)), fields.origin)


def hf_config(gguf: Gguf, architecture: Architecture) -> HfValues:
    """What the model's config.json would say."""
    fields, a = gguf.fields, architecture.name
    _refuse_unsupported(fields, a)
    embedding = gguf.info("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(
            f"{fields.origin} holds no token embedding: it is no language model", hint="choose the model's main file"
        )
    d_model, n_heads = fields.integer(f"{a}.embedding_length"), fields.integer(f"{a}.attention.head_count")
    head_dim = fields.integer(f"{a}.attention.key_length", d_model // n_heads or 1)
    values: HfValues = {
        "architectures": [architecture.hf],
        "num_hidden_layers": fields.integer(f"{a}.block_count"),
        "hidden_size": d_model,
        "intermediate_size": fields.integer(f"{a}.feed_forward_length"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": fields.integer(f"{a}.attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": fields.integer(f"{a}.context_length"),
        "rms_norm_eps": fields.number(f"{a}.attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number(f"{a}.rope.freq_base", 10_000.0),
        "tie_word_embeddings": gguf.info("output.weight") is None,
        "bos_token_id": special_id(fields, "bos"),
        "eos_token_id": special_id(fields, "eos"),
        "attention_bias": gguf.info("blk.0.attn_output.bias") is not None,
        "mlp_bias": gguf.info("blk.0.ffn_up.bias") is not None,
    }
    if fields.integer(f"{a}.attention.value_length", head_dim) != head_dim:
        raise fields.refusal(f"{a}.attention.value_length", f"{head_dim}, as long as keys")
    rotated = fields.integer(f"{a}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        values["partial_rotary_factor"] = rotated / head_dim
    values |= architecture.extra(fields, values)
    return values | _rope(gguf, fields, values, rotated)


def _refuse_unsupported(fields: Fields, a: str) -> None:
    for key in REFUSED:
        if f"{a}.{key}" in fields.values:
            raise ModelError(f"{fields.origin} has {a}.{key}, which is not supported")
    if not fields.boolean(f"{a}.attention.causal", True):
        raise fields.refusal(f"{a}.attention.causal", "true: here tokens see only those before them")


def _rope(gguf: Gguf, fields: Fields, values: HfValues, rotated: int) -> HfValues:
    """The `rope_scaling` of the config: a factor for all frequencies, or one for each (Llama 3.1 and later, Phi-3)."""
    a, positions = fields.text("general.architecture"), values["max_position_embeddings"]
    kind, factor = _rope_factor(fields, a)
    attention_factor = fields.number(f"{a}.rope.scaling.attn_factor", 1.0)
    single, short, long = (_factors(gguf, name, rotated // 2) for name in ROPE_FACTORS)
    if single is not None:
        if kind != "none":
            raise fields.refusal(f"{a}.rope.scaling.type", "none beside the tensor rope_freqs.weight")
        short = long = single
    if (short is None) != (long is None):
        raise ModelError(f"{fields.origin} holds only one of its two lists of rope factors", hint="download the model again")
    if short is not None and long is not None:
        return {
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": short,
                "long_factor": long,
                "original_max_position_embeddings": values.get("original_max_position_embeddings", positions),
                "attention_factor": attention_factor,
            }
        }
    if kind == "yarn":
        return {"rope_scaling": {"rope_type": kind, "factor": factor} | _yarn(fields, a, factor, attention_factor)}
    if attention_factor != 1:
        raise fields.refusal(f"{a}.rope.scaling.attn_factor", "1 without lists of rope factors")
    return {} if kind == "none" else {"rope_scaling": {"rope_type": kind, "factor": factor}}


def _rope_factor(fields: Fields, a: str) -> tuple[str, float]:
    """How all frequencies are scaled, and by what. As in llama.cpp a factor without a type is linear, and one of 0 is none.

    Files of 2023 have the factor under another key.
    """
    kind = fields.text(f"{a}.rope.scaling.type", "linear")
    key = next((key for key in (f"{a}.rope.scaling.factor", f"{a}.rope.scale_linear") if key in fields.values), None)
    given = None if key is None else fields.values[key]
    factor = 1.0 if key is None or (isinstance(given, float) and given == 0) else fields.number(key)
    return ("none" if kind == "linear" and factor == 1 else kind), factor


def _yarn(fields: Fields, a: str, factor: float, attention_factor: float) -> HfValues:
    """`attn_factor` multiplies the length that YaRN gives queries and keys by itself; at Hugging Face `attention_factor` replaces it."""
    length = (1 + 0.1 * math.log(factor)) if factor > 1 else 1.0
    return {
        "original_max_position_embeddings": fields.optional_integer(f"{a}.rope.scaling.original_context_length"),
        "beta_fast": fields.optional_number(f"{a}.rope.scaling.yarn_beta_fast"),
        "beta_slow": fields.optional_number(f"{a}.rope.scaling.yarn_beta_slow"),
        "attention_factor": length * attention_factor,
    }


def _factors(gguf: Gguf, name: str, n_pairs: int) -> list[float] | None:
    """Divisors of the frequencies, one for each pair of rotated dimensions."""
    info = gguf.info(name)
    if info is None:
        return None
    if info.type is not types.F32 or info.shape != (n_pairs,) or n_pairs > MAX_WIDTH:
        raise ModelError(f"{name} in {gguf.path} is {info.type.name} of shape {list(info.shape)}, not {n_pairs} values of fp32")
    values: list[Any] = floats(info.type, gguf.rows(name)).reshape(-1).tolist()
    if not all(0 < value < 1e9 for value in values):
        raise ModelError(f"{name} in {gguf.path} holds factors that are no positive numbers")
    return values
