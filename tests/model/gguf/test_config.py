from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdi.errors import ModelError
from mdi.model.experts import Experts
from mdi.model.gguf import types
from mdi.model.gguf.architectures import ARCHITECTURES, paired_to_halves
from mdi.model.gguf.config import hf_config, read_config
from mdi.model.gguf.files import Gguf
from mdi.model.rope import LinearScaling, YarnScaling
from tests.model.gguf.written import Tensor, Typed, Written

D, V = 64, 96


def metadata(a: str = "llama", **more: Any) -> dict[str, Any]:
    """Keys of `more` are written with `__` for dots."""
    return {
        "general.architecture": a,
        f"{a}.block_count": 12,
        f"{a}.context_length": 4096,
        f"{a}.embedding_length": D,
        f"{a}.feed_forward_length": 160,
        f"{a}.attention.head_count": 4,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [str(i) for i in range(V)],
        "tokenizer.ggml.eos_token_id": 2,
    } | {f"{a}.{key.replace('__', '.')}": value for key, value in more.items()}


def gguf(tmp_path: Path, values: dict[str, Any], **more: Tensor) -> Gguf:
    tensors = {"token_embd.weight": (types.F32, (V, D), bytes(4 * V * D))}
    path = Written(values, tensors | {name.replace("__", "."): tensor for name, tensor in more.items()}).save(
        tmp_path / "m.gguf"
    )
    return Gguf.open(path)


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.endswith(names)}


def factors(values: list[float], kind: types.GgmlType = types.F32) -> Tensor:
    return kind, (len(values),), np.array(values, "<f4" if kind is types.F32 else "<f2").tobytes()


def test_llama_is_read(tmp_path: Path) -> None:
    values = metadata(attention__head_count_kv=2, rope__freq_base=500_000.0)
    config = read_config(gguf(tmp_path, values))
    assert (config.architecture, config.n_blocks, config.d_model, config.d_ffn) == ("LlamaForCausalLM", 12, D, 160)
    assert (config.n_heads, config.n_kv_heads, config.head_dim, config.vocab_size) == (4, 2, 16, V)
    assert (config.max_positions, config.rope.theta, config.rope.scaling) == (4096, 500_000.0, None)
    assert (config.tied_head, config.bos_id, config.eos_ids) == (True, None, (2,))
    assert config.norm_eps == pytest.approx(1e-5)


def test_silence_means_what_llama_cpp_takes_it_for(tmp_path: Path) -> None:
    values = without(metadata(), "tokenizer.ggml.eos_token_id") | {"tokenizer.ggml.model": "llama"}
    config = read_config(gguf(tmp_path, values, output__weight=(types.F32, (V, D), bytes(4 * V * D))))
    assert (config.n_kv_heads, config.rope.theta, config.tied_head) == (4, 10_000.0, False)
    assert (config.bos_id, config.eos_ids) == (1, (2,))


@pytest.mark.parametrize("value", [V, (1 << 32) - 1])
def test_special_id_that_is_no_token_counts_as_none(tmp_path: Path, value: int) -> None:
    assert read_config(gguf(tmp_path, metadata() | {"tokenizer.ggml.eos_token_id": value})).eos_ids == ()


def test_head_size_is_the_files_own(tmp_path: Path) -> None:
    values = metadata(attention__key_length=32, attention__value_length=32)
    assert read_config(gguf(tmp_path, values)).head_dim == 32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba', which is not supported"),
        ({"general.architecture": 3}, "general.architecture"),
        ({"llama.block_count": "12"}, "llama.block_count"),
        ({"llama.block_count": Typed("u64", 1 << 60)}, "n_blocks is 1152921504606846976"),
        ({"llama.embedding_length": Typed("i64", -5)}, "llama.embedding_length"),
        ({"llama.attention.head_count_kv": [4, 4, 2]}, "llama.attention.head_count_kv"),
        ({"llama.attention.head_count_kv": 3}, "cannot share 3"),
        ({"llama.attention.layer_norm_rms_epsilon": math.inf}, "layer_norm_rms_epsilon"),
        ({"llama.attention.value_length": 8}, "value_length"),
        ({"llama.expert_count": 8}, "lacks the field 'llama.expert_used_count'"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 9}, "9 of 8 experts"),
        ({"llama.expert_count": 1 << 20, "llama.expert_used_count": 2}, "2 of 1048576 experts"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.expert_shared_count": 1}, "expert_shared_count = 1"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.expert_gating_func": 2}, "expert_gating_func = 2"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.expert_weights_scale": 2.5}, "expert_weights_scale"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.expert_weights_norm": False}, "must be true"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.expert_group_count": [1, 2]}, "expert_group_count"),
        ({"llama.attention.scale": 0.5}, "llama.attention.scale"),
        ({"llama.rope.scaling.type": "resonance", "llama.rope.scaling.factor": 4.0}, "resonance"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ({"llama.rope.freq_base": -1.0}, "freq_base"),
        ({"llama.attention.causal": False}, "llama.attention.causal"),
        ({"llama.rope.scaling.attn_factor": 1.5}, "llama.rope.scaling.attn_factor"),
        ({"tokenizer.ggml.bos_token_id": "x"}, "bos_token_id"),
    ],
)
def test_metadata_that_cannot_be_run_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_config(gguf(tmp_path, metadata() | change))


MIX = {"expert_count": 8, "expert_used_count": 2}


def test_mixture_that_calls_itself_llama_is_mixtral(tmp_path: Path) -> None:
    config = read_config(gguf(tmp_path, metadata(**MIX, expert_gating_func=1, expert_weights_scale=1.0)))
    assert config.architecture == "MixtralForCausalLM"
    assert config.experts == Experts(n_experts=8, n_chosen=2, d_ffn=160, normalised=True)
    assert config.sparse_blocks == tuple(range(12))
    assert config.sliding_window is None


@pytest.mark.parametrize(
    ("more", "experts"),
    [
        ({"expert_feed_forward_length": 48}, Experts(8, 2, 48, True)),
        ({}, Experts(8, 2, 80, True)),  # as llama.cpp shares the dense width among the chosen
        ({"expert_weights_norm": False}, Experts(8, 2, 80, False)),
    ],
)
def test_qwen_experts_have_a_width_of_their_own(tmp_path: Path, more: dict[str, Any], experts: Experts) -> None:
    config = read_config(gguf(tmp_path, metadata("qwen3moe", **MIX, **more)))
    assert (config.architecture, config.experts) == ("Qwen3MoeForCausalLM", experts)


def test_experts_are_refused_where_nobody_computes_them(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="mixture of experts, which is not supported for qwen2"):
        read_config(gguf(tmp_path, metadata("qwen2", **MIX)))


@pytest.mark.parametrize(
    "name", ["block_count", "context_length", "embedding_length", "feed_forward_length", "head_count", "layer_norm_rms_epsilon"]
)
def test_missing_key_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"lacks the field .*{name}"):
        read_config(gguf(tmp_path, without(metadata(), name)))


def test_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as refused:
        read_config(gguf(tmp_path, metadata("rwkv7")))
    assert "llama, qwen2, qwen3, smollm3, gemma2, gemma3, phi3, qwen3moe" in (refused.value.hint or "")


def test_file_without_an_embedding_is_no_language_model(tmp_path: Path) -> None:
    path = Written(metadata()).save(tmp_path / "vision.gguf")
    with pytest.raises(ModelError, match="no token embedding"):
        read_config(Gguf.open(path))


def test_linear_rope_scaling_is_read(tmp_path: Path) -> None:
    plain = read_config(gguf(tmp_path, metadata())).rope
    scaled = read_config(gguf(tmp_path, metadata(rope__scaling__type="linear", rope__scaling__factor=4.0))).rope
    np.testing.assert_allclose(scaled.inverse_frequencies(16) * 4, plain.inverse_frequencies(16), rtol=1e-6)


def test_yarn_is_read(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 1024}
    values = metadata("qwen2", **{f"rope__scaling__{key}": value for key, value in yarn.items()})
    scaling = read_config(gguf(tmp_path, values)).rope.scaling
    assert scaling == YarnScaling(4.0, 1024, 32.0, 1.0, pytest.approx(1 + 0.1 * math.log(4)), True)
    values |= {"qwen2.rope.scaling.attn_factor": 1.5, "qwen2.rope.scaling.yarn_beta_fast": 16.0}
    scaling = read_config(gguf(tmp_path, values)).rope.scaling
    assert scaling == YarnScaling(4.0, 1024, 16.0, 1.0, pytest.approx(1.5 * (1 + 0.1 * math.log(4))), True)


@pytest.mark.parametrize("more", [{"rope__scaling__factor": 4.0}, {"rope__scale_linear": 4.0}])
def test_rope_factor_without_a_type_is_linear_as_llama_cpp_takes_it(tmp_path: Path, more: dict[str, float]) -> None:
    assert read_config(gguf(tmp_path, metadata(**more))).rope.scaling == LinearScaling(4.0)


@pytest.mark.parametrize(
    "more", [{"rope__scaling__factor": 0.0}, {"rope__scaling__type": "none", "rope__scaling__factor": 4.0}]
)
def test_rope_factor_of_nothing_changes_nothing(tmp_path: Path, more: dict[str, Any]) -> None:
    assert read_config(gguf(tmp_path, metadata(**more))).rope.scaling is None


@pytest.mark.parametrize("name", ["rope_factors_short__weight", "rope_factors_long__weight"])
def test_one_of_two_lists_of_rope_factors_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="one of its two lists of rope factors"):
        read_config(gguf(tmp_path, metadata("phi3"), **{name: factors([1.0] * 8)}))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (factors([1.0] * 7), r"shape \[7\], not 8 values"),
        (factors([1.0] * 8, types.F16), "F16"),
        (factors([1.0] * 7 + [0.0]), "no positive numbers"),
        (factors([1.0] * 7 + [math.nan]), "no positive numbers"),
    ],
)
def test_rope_factors_that_make_no_sense_are_refused(tmp_path: Path, tensor: Tensor, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_config(gguf(tmp_path, metadata(), rope_freqs__weight=tensor))


def hf(tmp_path: Path, values: dict[str, Any], **more: Tensor) -> dict[str, Any]:
    return hf_config(gguf(tmp_path, values, **more), ARCHITECTURES[values["general.architecture"]])


def test_rope_factors_of_llama_3_1_divide_every_frequency(tmp_path: Path) -> None:
    numbers = [1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0, 32.0]
    scaling = hf(tmp_path, metadata(), rope_freqs__weight=factors(numbers))["rope_scaling"]
    assert scaling["short_factor"] == scaling["long_factor"] == numbers
    assert scaling["attention_factor"] == 1.0


def test_phi3_has_factors_for_short_and_long_contexts(tmp_path: Path) -> None:
    values = metadata("phi3", rope__scaling__original_context_length=1024, rope__scaling__attn_factor=1.25)
    values |= {"phi3.attention.sliding_window": 2047}
    lists = {"rope_factors_short__weight": factors([1.0] * 8), "rope_factors_long__weight": factors([2.0] * 8)}
    found = hf(tmp_path, values, **lists)
    assert (found["architectures"], found["sliding_window"]) == (["Phi3ForCausalLM"], 2047)
    assert found["rope_scaling"] == {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 1024,
        "attention_factor": 1.25,
    }
    assert hf(tmp_path, values | {"phi3.attention.sliding_window": 0}, **lists)["sliding_window"] is None


def test_gemma2_alternates_windows_and_caps(tmp_path: Path) -> None:
    found = hf(tmp_path, metadata("gemma2", attention__key_length=32, attention__value_length=32))
    assert found["layer_types"] == ["sliding_attention", "full_attention"] * 6
    assert (found["sliding_window"], found["query_pre_attn_scalar"]) == (4096, 32)
    assert (found["attn_logit_softcapping"], found["final_logit_softcapping"]) == (50.0, 30.0)
    large = hf(tmp_path, metadata("gemma2", block_count=46, attention__key_length=32, attention__value_length=32))
    assert large["query_pre_attn_scalar"] == D // 4  # the 27B model


def test_gemma3_sees_everything_in_every_sixth_block(tmp_path: Path) -> None:
    values = metadata("gemma3", attention__sliding_window=512, rope__freq_base=1e6)
    values |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    found = hf(tmp_path, values)
    assert found["layer_types"] == (["sliding_attention"] * 5 + ["full_attention"]) * 2
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 10_000.0)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    told = [True, False] * 6
    found = hf(tmp_path, values | {"gemma3.attention.sliding_window_pattern": told})
    assert found["layer_types"] == ["sliding_attention", "full_attention"] * 6
    with pytest.raises(ModelError, match="tells of 2 blocks, and the model has 12"):
        hf(tmp_path, values | {"gemma3.attention.sliding_window_pattern": [True, False]})
    with pytest.raises(ModelError, match="more than"):
        hf(tmp_path, values | {"gemma3.block_count": Typed("u64", 1 << 50)})


def test_part_of_a_head_that_is_rotated_is_said(tmp_path: Path) -> None:
    assert hf(tmp_path, metadata("phi3", rope__dimension_count=12))["partial_rotary_factor"] == 0.75


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_are_those_of_the_gguf_package(name: str) -> None:
    gguf_package = pytest.importorskip("gguf")
    by_name = {value: key for key, value in gguf_package.MODEL_ARCH_NAMES.items()}
    theirs = gguf_package.get_tensor_name_map(by_name[name], 3)
    row = ARCHITECTURES[name]
    known = {module for module in row.modules if theirs.get_name(f"model.layers.2.{module}") is not None}
    assert len(known) >= 9
    for module in known:
        if name == "phi3" and module == "mlp.up_proj":  # has gate_up_proj under that name
            continue
        expected = theirs.get_name(f"model.layers.2.{module}")
        assert row.tensor(f"model.layers.2.{module}.weight") == f"{expected}.weight", module
    for outer in ("model.embed_tokens", "model.norm", *(["lm_head"] if theirs.get_name("lm_head") else [])):
        assert row.tensor(f"{outer}.weight") == f"{theirs.get_name(outer)}.weight"
    assert row.tensor("model.layers.0.unheard_of.weight") is None
    assert row.tensor("model.vision.weight") is None


def test_paired_rows_become_halves() -> None:
    """By llama.cpp's definition of what the file holds: reshape(heads, 2, half).swapaxes(1, 2)."""
    for heads, size in ((1, 2), (4, 16), (8, 6)):
        file = np.arange(heads * size).reshape(heads, 2, size // 2).swapaxes(1, 2).reshape(-1)
        assert file[paired_to_halves(heads, heads * size)].tolist() == list(range(heads * size))
