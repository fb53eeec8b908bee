from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.rope import Llama3Scaling
from tests.checkpoints import KINDS, LLAMA3_ROPE, TINY

LLAMA = TINY | {"architectures": ["LlamaForCausalLM"]}
MISTRAL = {name: value for name, value in TINY.items() if name != "num_key_value_heads"} | {
    "architectures": ["MistralForCausalLM"],
    "num_attention_heads": 8,
}


def hf_config(kind: str) -> LlamaConfig | MistralConfig:
    make = MistralConfig if kind.startswith("mistral") else LlamaConfig
    return make(**TINY | KINDS[kind], architectures=["MistralForCausalLM" if make is MistralConfig else "LlamaForCausalLM"])


@pytest.mark.parametrize("kind", KINDS)
def test_config_says_what_transformers_says(kind: str) -> None:
    theirs = hf_config(kind)
    ours = ModelConfig.from_hf(json.loads(theirs.to_json_string(use_diff=False)))
    assert (ours.n_blocks, ours.d_model, ours.n_heads) == (3, 64, 4)
    assert ours.n_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == theirs.head_dim
    assert ours.d_ffn == theirs.intermediate_size
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    assert ours.tied_head == theirs.tie_word_embeddings
    assert (ours.bos_id, ours.eos_ids) == (1, (2,))


@pytest.mark.parametrize("make", [LlamaConfig, MistralConfig])
def test_what_a_config_leaves_out_means_what_it_means_to_transformers(make: type[LlamaConfig] | type[MistralConfig]) -> None:
    required = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    full = json.loads(make(architectures=[make.__name__.replace("Config", "ForCausalLM")]).to_json_string(use_diff=False))
    sparse = {name: full[name] for name in required | {"architectures"}}
    assert ModelConfig.from_hf(sparse) == ModelConfig.from_hf(full)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 500_000.0},
        {"rope_theta": 1e6, "rope_scaling": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {name: value for name, value in LLAMA3_ROPE.items() if name != "rope_theta"}},
        {"rope_parameters": LLAMA3_ROPE},
        {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5e5, "factor": 32.0, "original_max_position_embeddings": 8192}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ],
)
def test_rotation_frequencies_equal_those_of_transformers(rope: dict[str, Any], head_dim: int) -> None:
    values = LLAMA | {"head_dim": head_dim} | rope
    theirs = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(values)))).inv_freq.numpy()
    ours = ModelConfig.from_hf(values).rope.inverse_frequencies(head_dim)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=3e-7)  # two places of fp32: pow() differs between libraries


def test_original_length_beside_the_scaling_wins_over_the_one_inside() -> None:
    config = ModelConfig.from_hf(LLAMA | {"rope_parameters": LLAMA3_ROPE, "original_max_position_embeddings": 32})
    assert isinstance(config.rope.scaling, Llama3Scaling)
    assert config.rope.scaling.original_positions == 32


@pytest.mark.parametrize("kind", KINDS)
def test_config_survives_json(kind: str) -> None:
    config = ModelConfig.from_hf(hf_config(kind).to_dict())
    assert ModelConfig.from_json(config.to_json()) == config
    assert ModelConfig.from_json(config.to_json()).to_json() == config.to_json()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "'hidden_size'"),
        ({"hidden_size": "64"}, "'hidden_size'"),
        ({"hidden_size": True}, "'hidden_size'"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers'"),
        ({"num_hidden_layers": 100_000}, "n_blocks"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        ({"head_dim": 7}, "7 dimensions"),
        ({"rms_norm_eps": 0}, "'rms_norm_eps'"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps'"),
        ({"rms_norm_eps": 10**400}, "'rms_norm_eps'"),
        ({"eos_token_id": ["</s>"]}, "'eos_token_id'"),
        ({"eos_token_id": -1}, "'eos_token_id'"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings'"),
        ({"architectures": None}, "'architectures'"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes'"),
        ({"quantization_config": {"quant_method": "fp8", "bits": 8}}, "'fp8'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "GPTQ weights of 3 bits"),
        ({"quantization_config": {"quant_method": "awq", "bits": 8}}, "AWQ weights of 8 bits"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}}, "'marlin'"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}}, "'gemv'"),
        ({"quantization_config": {"bits": 4}}, "'quant_method'"),
        ({"quantization_config": "gptq"}, "'quantization_config'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "'factor'"),
        ({"rope_scaling": "linear"}, "'rope_scaling'"),
        ({"rope_theta": -1.0}, "'rope_theta'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": LLAMA3_ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as refused:
        ModelConfig.from_hf(LLAMA | change)
    assert named in str(refused.value)


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ModelError) as refused:
        ModelConfig.from_hf(LLAMA | {"architectures": ["PhiForCausalLM"]})
    assert "LlamaForCausalLM, MistralForCausalLM" in (refused.value.hint or "")


def test_missing_field_is_said_to_be_missing() -> None:
    with pytest.raises(ModelError, match="lacks the field 'hidden_size'"):
        ModelConfig.from_hf({name: value for name, value in LLAMA.items() if name != "hidden_size"})


def test_null_end_of_text_means_none() -> None:
    config = ModelConfig.from_hf(LLAMA | {"eos_token_id": None, "bos_token_id": None})
    assert (config.bos_id, config.eos_ids) == (None, ())
    assert ModelConfig.from_hf(LLAMA | {"eos_token_id": [2, 7]}).eos_ids == (2, 7)


def test_mistral_defaults_hold_where_llama_has_none() -> None:
    config = ModelConfig.from_hf(MISTRAL)
    assert (config.n_kv_heads, config.sliding_window) == (8, 4096)
    assert ModelConfig.from_hf(MISTRAL | {"sliding_window": None}).sliding_window is None
    assert ModelConfig.from_hf(LLAMA | {"sliding_window": 16}).sliding_window is None


@given(st.text() | st.binary())
def test_bytes_from_anyone_are_refused_with_a_model_error(text: str | bytes) -> None:
    with pytest.raises(ModelError):
        ModelConfig.from_json(text)


ANY_VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())


@given(st.sampled_from(sorted(json.loads(ModelConfig.from_hf(LLAMA).to_json()))), ANY_VALUE)
def test_a_changed_field_gives_another_config_or_a_model_error(name: str, value: Any) -> None:
    values = json.loads(ModelConfig.from_hf(LLAMA).to_json()) | {name: value}
    try:
        config = ModelConfig.from_json(json.dumps(values))
    except ModelError:
        return
    assert ModelConfig.from_json(config.to_json()) == config
