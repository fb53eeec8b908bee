from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.experts import Experts
from mdi.model.families import FAMILIES
from mdi.model.rope import LinearScaling, Llama3Scaling, Rope
from tests.checkpoints import CONFIGS, KINDS, LLAMA3_ROPE, LONGROPE, TINY, TOKENS, YARN, hf_config

LLAMA = TINY | {"architectures": ["LlamaForCausalLM"]}
MISTRAL = {name: value for name, value in TINY.items() if name != "num_key_value_heads"} | {
    "architectures": ["MistralForCausalLM"],
    "num_attention_heads": 8,
}
ARCHITECTURES = dict(
    zip(
        CONFIGS,
        ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Phi3", "Gemma2", "Gemma3", "Mixtral", "Qwen3Moe"),
        strict=True,
    )
)


def hf_values(kind: str, **overrides: Any) -> dict[str, Any]:
    """A config of one of `KINDS` as transformers writes it."""
    named = {"architectures": [f"{ARCHITECTURES[kind.split('-')[0]]}ForCausalLM"]}
    values: dict[str, Any] = json.loads(hf_config(kind, **named | overrides).to_json_string(use_diff=False))
    return values


def test_every_family_is_tested() -> None:
    assert {f"{name}ForCausalLM" for name in ARCHITECTURES.values()} == set(FAMILIES)
    assert {kind.split("-")[0] for kind in KINDS} == set(CONFIGS)


@pytest.mark.parametrize("kind", KINDS)
def test_config_says_what_transformers_says(kind: str) -> None:
    theirs = hf_config(kind, num_hidden_layers=5)
    ours = ModelConfig.from_hf(hf_values(kind, num_hidden_layers=5))
    assert (ours.n_blocks, ours.d_model, ours.n_heads) == (5, 64, theirs.num_attention_heads)
    assert ours.n_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 64 // theirs.num_attention_heads)
    assert ours.d_ffn == theirs.intermediate_size
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.max_positions == theirs.max_position_embeddings
    layer_types = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 5
    if getattr(theirs, "sliding_window", None) is not None:
        windowed = [block for block, kind in enumerate(layer_types) if kind == "sliding_attention"]
        assert [ours.window(block) for block in windowed] == [theirs.sliding_window] * len(windowed)
        assert all(ours.window(block) is None for block in range(5) if block not in windowed)
    else:
        assert not ours.windowed_blocks
    assert ours.tied_head == theirs.tie_word_embeddings
    assert (ours.bos_id, ours.eos_ids) == (1, (2,))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_config_leaves_out_means_what_it_means_to_transformers(name: str) -> None:
    required = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    full = json.loads(CONFIGS[name](architectures=[f"{ARCHITECTURES[name]}ForCausalLM"]).to_json_string(use_diff=False))
    sparse = {name: full[name] for name in required | {"architectures"}}
    assert ModelConfig.from_hf(sparse) == ModelConfig.from_hf(full)


@pytest.mark.parametrize(
    ("kind", "change", "blocks"),
    [
        ("qwen2-window", {"use_sliding_window": False}, ()),
        ("qwen2-window", {"layer_types": None}, (2, 3, 4)),
        ("qwen2-window", {"layer_types": None, "max_window_layers": 9}, ()),
        ("qwen3moe", {"use_sliding_window": True, "sliding_window": 16}, (0, 1, 2, 3, 4)),
        ("smollm3-window", {"layer_types": None}, (1, 2)),
        ("gemma2", {"layer_types": None}, (0, 2, 4)),
        ("gemma2", {"sliding_window": None}, ()),
        ("gemma3", {"layer_types": None}, (0, 1, 3, 4)),
        ("gemma3", {"layer_types": None, "sliding_window_pattern": None}, (0, 1, 2, 3, 4)),
        ("gemma3", {"layer_types": None, "sliding_window_pattern": 2}, (0, 2, 4)),
        ("gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 4]}, (1, 2, 3, 4)),
        ("phi3", {"sliding_window": None}, ()),
    ],
)
def test_windows_follow_the_list_of_layers_or_else_the_rule_of_the_family(
    kind: str, change: dict[str, Any], blocks: tuple[int, ...]
) -> None:
    config = ModelConfig.from_hf(hf_values(kind, num_hidden_layers=5) | change)
    assert config.windowed_blocks == blocks


def test_blocks_without_rotation_and_without_experts_are_told_apart() -> None:
    smol = ModelConfig.from_hf(
        hf_values("smollm3", num_hidden_layers=5) | {"no_rope_layers": None, "no_rope_layer_interval": None}
    )
    assert smol.unrotated_blocks == (3,)
    assert [smol.rope_of(block) is None for block in range(5)] == [False, False, False, True, False]
    qwen = ModelConfig.from_hf(hf_values("qwen3moe", num_hidden_layers=5))
    assert qwen.sparse_blocks == (0, 2, 3, 4)
    assert qwen.experts == Experts(n_experts=8, n_chosen=3, d_ffn=64, normalised=False)
    mixtral = ModelConfig.from_hf(hf_values("mixtral"))
    assert mixtral.experts == Experts(n_experts=4, n_chosen=2, d_ffn=96, normalised=True)


def test_gemma_3_rotates_blocks_with_a_window_otherwise_in_configs_of_both_ages() -> None:
    new = hf_values("gemma3")
    old = {name: value for name, value in new.items() if name != "rope_parameters"} | {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    config = ModelConfig.from_hf(new)
    assert config == ModelConfig.from_hf(old)
    assert [config.rope_of(block) for block in (1, 2)] == [Rope(1e4), Rope(1e6, LinearScaling(8.0))]


def test_what_gemma_computes_otherwise_is_read() -> None:
    config = ModelConfig.from_hf(hf_values("gemma2"))
    assert (config.attention_scale, config.attention_softcap, config.logit_softcap) == (pytest.approx(24**-0.5), 2.0, 5.0)
    assert config.embedding_scale == 8.0
    assert ModelConfig.from_hf(LLAMA).embedding_scale == 1.0
    silent = ModelConfig.from_hf({name: v for name, v in hf_values("gemma2").items() if "softcapping" not in name})
    assert (silent.attention_softcap, silent.logit_softcap) == (50.0, 30.0)


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
        {"rope_parameters": YARN},
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}},
        {"rope_parameters": YARN | {"original_max_position_embeddings": 4096, "beta_fast": 16.0, "beta_slow": 2.0}},
        {"rope_parameters": YARN | {"original_max_position_embeddings": 4096, "truncate": False, "beta_fast": 3}},
        {"rope_parameters": YARN | {"original_max_position_embeddings": 4096, "truncate": False, "beta_fast": 1.0}},
        {"rope_parameters": YARN | {"factor": 0.5, "original_max_position_embeddings": 1}},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ],
)
def test_rotation_frequencies_equal_those_of_transformers(rope: dict[str, Any], head_dim: int) -> None:
    values = LLAMA | {"head_dim": head_dim} | rope
    theirs = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(values)))).inv_freq.numpy()
    ours = ModelConfig.from_hf(values).rope.inverse_frequencies(head_dim)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=3e-7)  # two places of fp32: pow() differs between libraries


@pytest.mark.parametrize("part", [1.0, 0.5])
@pytest.mark.parametrize("ctx", [64, 65])
def test_longrope_chooses_by_the_context_and_rotates_a_part_as_transformers_does(part: float, ctx: int) -> None:
    values = TINY | TOKENS | {"num_attention_heads": 4 if part == 1 else 2, "original_max_position_embeddings": 64}
    values |= {"rope_parameters": LONGROPE | {"partial_rotary_factor": part}}
    theirs = Phi3RotaryEmbedding(Phi3Config(**json.loads(json.dumps(values))))
    cos, sin = theirs(torch.zeros(1), torch.arange(ctx)[None])
    config = ModelConfig.from_hf(values | {"architectures": ["Phi3ForCausalLM"]})
    assert config.rope.rotated(config.head_dim) == 16
    for ours, wanted in zip(config.rope.tables(config.head_dim, ctx), (cos, sin), strict=True):
        np.testing.assert_allclose(ours, wanted[0, :, :8].numpy(), atol=1e-5)


@pytest.mark.parametrize("ctx", [256, 257, 700])
def test_dynamic_scaling_turns_slower_the_longer_the_context_is_as_in_transformers(ctx: int) -> None:
    values = LLAMA | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(values))))
    cos, sin = theirs(torch.zeros(1), torch.arange(ctx)[None])
    config = ModelConfig.from_hf(values)
    for ours, wanted in zip(config.rope.tables(config.head_dim, ctx), (cos, sin), strict=True):
        np.testing.assert_allclose(ours, wanted[0, :, :8].numpy(), atol=1e-4)
    assert (config.max_positions, ModelConfig.from_json(config.to_json())) == (768, config)


@pytest.mark.parametrize(
    "yarn",
    [
        {},
        {"factor": None},
        {"factor": 0.5},
        {"attention_factor": 1.3},
        {"mscale": 0.7, "mscale_all_dim": 1.4},
        {"mscale": 0.7},
        {"attention_factor": None, "mscale_all_dim": 1.4, "beta_fast": None, "beta_slow": None},
    ],
)
def test_yarn_lengthens_queries_and_keys_as_transformers_does(yarn: dict[str, Any]) -> None:
    values = LLAMA | {"rope_parameters": YARN | yarn}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(values))))
    cos, sin = theirs(torch.zeros(1), torch.arange(64)[None])
    config = ModelConfig.from_hf(values)
    for ours, wanted in zip(config.rope.tables(config.head_dim, 64), (cos, sin), strict=True):
        np.testing.assert_allclose(ours, wanted[0, :, :8].numpy(), atol=1e-5)


def test_yarn_added_to_a_config_that_knows_only_its_training_length_stretches_the_context() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    silent = hf_values("qwen2", max_position_embeddings=32_768) | {"rope_parameters": None, "rope_scaling": yarn}
    assert ModelConfig.from_hf(silent).max_positions == 131_072
    assert ModelConfig.from_hf(silent | {"max_position_embeddings": 262_144}).max_positions == 262_144


def test_longrope_is_read_by_its_first_name_too() -> None:
    values = hf_values("phi3-long")
    assert ModelConfig.from_hf(values | {"rope_parameters": LONGROPE | {"rope_type": "su"}}) == ModelConfig.from_hf(values)


def test_original_length_beside_the_scaling_wins_over_the_one_inside() -> None:
    config = ModelConfig.from_hf(LLAMA | {"rope_parameters": LLAMA3_ROPE, "original_max_position_embeddings": 32})
    assert isinstance(config.rope.scaling, Llama3Scaling)
    assert config.rope.scaling.original_positions == 32


@pytest.mark.parametrize("kind", KINDS)
def test_config_survives_json(kind: str) -> None:
    config = ModelConfig.from_hf(hf_values(kind, num_hidden_layers=5))
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
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"architectures": ["MistralForCausalLM"], "attention_bias": True}, "attention_bias = True"),
        ({"architectures": ["Qwen3ForCausalLM"], "mlp_bias": True}, "mlp_bias = True"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes'"),
        ({"quantization_config": {"quant_method": "fp8", "bits": 8}}, "'fp8'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "GPTQ weights of 3 bits"),
        ({"quantization_config": {"quant_method": "awq", "bits": 8}}, "AWQ weights of 8 bits"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}}, "'marlin'"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}}, "'gemv'"),
        ({"quantization_config": {"bits": 4}}, "'quant_method'"),
        ({"quantization_config": "gptq"}, "'quantization_config'"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "'proportional'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0}}, "'factor'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}}, "'truncate'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 2}}, "beta_fast above beta_slow"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "rope_theta above 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 1e30}}, "max_positions"),
        ({"rope_scaling": {"type": "dynamic"}}, "'factor'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "more than the 1 frequency"),
        ({"rope_scaling": {"type": "linear"}}, "'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 1e-40}}, "not finite"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 1e-40}}, "not finite"),
        ({"rope_scaling": "linear"}, "'rope_scaling'"),
        ({"rope_theta": -1.0}, "'rope_theta'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": LLAMA3_ROPE | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": LLAMA3_ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as refused:
        ModelConfig.from_hf(LLAMA | change)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("qwen2-window", {"layer_types": ["full_attention"]}, "'layer_types'"),
        ("qwen2-window", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "'chunked_attention'"),
        ("qwen2-window", {"layer_types": "full_attention"}, "'layer_types'"),
        ("qwen2-window", {"max_window_layers": -1}, "'max_window_layers'"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "'no_rope_layers'"),
        ("smollm3", {"no_rope_layers": [1, 0, 7]}, "'no_rope_layers'"),
        ("smollm3", {"no_rope_layer_interval": 0, "no_rope_layers": None}, "'no_rope_layer_interval'"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
        ("gemma2", {"attn_logit_softcapping": 0}, "'attn_logit_softcapping'"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "'query_pre_attn_scalar'"),
        ("gemma3", {"sliding_window": 0}, "'sliding_window'"),
        ("phi3-long", {"rope_parameters": LONGROPE | {"long_factor": [1.0]}}, "8 short and 1 long factors for 8"),
        ("phi3-long", {"rope_parameters": LONGROPE | {"short_factor": 7}}, "'short_factor'"),
        ("phi3-long", {"rope_parameters": LONGROPE | {"short_factor": [0.0] * 8}}, "'short_factor'"),
        ("phi3-long", {"rope_parameters": LONGROPE | {"partial_rotary_factor": 1.5}}, "partial_rotary_factor is 1.5"),
        ("phi3-long", {"rope_parameters": LONGROPE | {"partial_rotary_factor": 0.05}}, "0 dimensions of a head of 16"),
        ("phi3-long", {"rope_parameters": LONGROPE | {"long_factor": [1e-40] * 8}}, "not finite"),
        ("mixtral", {"num_experts_per_tok": 5}, "5 of 4 experts"),
        ("mixtral", {"num_local_experts": 1 << 20}, "experts"),
        ("qwen3moe", {"moe_intermediate_size": 1 << 30}, "width of the model's experts"),
        ("qwen3moe", {"mlp_only_layers": [99]}, "'mlp_only_layers'"),
        ("qwen3moe", {"norm_topk_prob": 1}, "'norm_topk_prob'"),
    ],
)
def test_a_config_of_any_family_that_cannot_be_run_is_refused_by_name(kind: str, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as refused:
        ModelConfig.from_hf(hf_values(kind) | change)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"windowed_blocks": [2, 1]}, "ascending"),
        ({"windowed_blocks": [0, 0]}, "ascending"),
        ({"windowed_blocks": [0, 5]}, "'windowed_blocks'"),
        ({"sparse_blocks": [True]}, "'sparse_blocks'"),
        ({"windowed_blocks": [0], "sliding_window": None}, "no sliding_window"),
        ({"sparse_blocks": [0], "experts": None}, "no experts"),
        ({"experts": {"n_experts": 8, "n_chosen": 9, "d_ffn": 64, "normalised": True}}, "9 of 8 experts"),
        ({"experts": {"n_experts": 8}}, "'n_chosen'"),
        ({"experts": [8]}, "'experts'"),
        ({"architecture": "LlamaForCausalLM"}, "no experts"),
        ({"architecture": "MixtralForCausalLM"}, "every block"),
        ({"attention_scale": -1.0}, "'attention_scale'"),
        ({"qkv_bias": None}, "'qkv_bias'"),
        ({"local_rope": {"rope_type": "proportional"}}, "'proportional'"),
        ({"n_blocks": 1 << 40}, "n_blocks"),
    ],
)
def test_facts_about_blocks_that_contradict_each_other_are_refused(change: dict[str, Any], named: str) -> None:
    values = json.loads(ModelConfig.from_hf(hf_values("qwen3moe", num_hidden_layers=5)).to_json())
    with pytest.raises(ModelError) as refused:
        ModelConfig.from_json(json.dumps(values | change))
    assert named in str(refused.value)


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ModelError) as refused:
        ModelConfig.from_hf(LLAMA | {"architectures": ["PhiForCausalLM"]})
    assert all(name in (refused.value.hint or "") for name in FAMILIES)


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


SAMPLES = [
    json.loads(ModelConfig.from_hf(hf_values(kind)).to_json()) for kind in ("llama", "gemma3", "phi3-partial", "qwen3moe")
]


@given(st.sampled_from(SAMPLES), st.sampled_from(sorted(SAMPLES[0])), ANY_VALUE)
def test_a_changed_field_gives_another_config_or_a_model_error(sample: dict[str, Any], name: str, value: Any) -> None:
    values = sample | {name: value}
    try:
        config = ModelConfig.from_json(json.dumps(values))
    except ModelError:
        return
    assert ModelConfig.from_json(config.to_json()) == config
