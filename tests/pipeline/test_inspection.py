from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from mdi.errors import UserError
from mdi.model.gguf import types
from mdi.model.kv import KvType
from mdi.model.packed import prepare
from mdi.model.quantise import Quant, WeightFormat
from mdi.model.source import Model, resolve
from mdi.node.stage import STAGE_BYTES
from mdi.pipeline.inspection import SYSTEM_BYTES, Fit, fit, inspect
from mdi.profile.memory import HEADROOM_BYTES
from tests.checkpoints import make_checkpoint
from tests.gguf_models import make_twins

GIB = 1 << 30
OTHERS = SYSTEM_BYTES + HEADROOM_BYTES + STAGE_BYTES
NEAR = 8192  # headers of packs


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_twins(tmp_path_factory.mktemp("twins"), types.Q4_K, vocab_size=320)


def test_gguf_is_told_by_its_headers(twins: tuple[Path, Path], tmp_path: Path) -> None:
    file, twin = twins
    found = inspect(resolve(str(file)), Quant.AUTO)
    assert (found.name, found.container, found.config.architecture) == ("model", "GGUF", "LlamaForCausalLM")
    assert found.parameters == AutoModelForCausalLM.from_pretrained(twin).num_parameters()
    state = load_file(twin / "model.safetensors")
    matrices = [tensor for tensor in state.values() if tensor.ndim == 2]
    values = sum(tensor.size for tensor in matrices)
    rows = {row.kind: row for row in found.formats}
    assert (rows["Q4_K"].tensors, rows["Q4_K"].n_bytes, rows["Q4_K"].bits_per_value) == (len(matrices), values * 4.5 / 8, 4.5)
    assert rows["F32"].tensors == len(state) - len(matrices)
    packed = prepare(Model(resolve(str(file))).checkpoint, WeightFormat(4, 32), tmp_path)
    assert 0 <= packed.block_bytes - found.block_bytes < NEAR
    assert 0 <= packed.head.n_bytes - found.head_bytes < NEAR
    assert found.kv_type is KvType.INT8
    assert found.kv_bytes_per_token == 2 * found.config.n_blocks * found.config.n_kv_heads * found.config.head_dim
    for exact in (inspect(resolve(str(file)), Quant.NONE), inspect(resolve(str(file)), Quant.AUTO, kv_type=KvType.FP32)):
        assert exact.kv_bytes_per_token == 4 * found.kv_bytes_per_token
    assert (
        inspect(resolve(str(file)), Quant.INT4).block_bytes
        < found.block_bytes
        < inspect(resolve(str(file)), Quant.INT8).block_bytes
    )


@pytest.mark.parametrize("kind", ["llama-tied", "qwen2", "gemma3", "qwen3moe"])
def test_checkpoint_is_told_by_its_headers(kind: str, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "tiny", kind)
    found = inspect(resolve(str(directory)), Quant.AUTO, 32, ctx=100)
    assert (found.name, found.container, found.ctx) == ("tiny", "safetensors", 100)
    assert found.parameters == AutoModelForCausalLM.from_pretrained(directory).num_parameters()
    assert {row.kind for row in found.formats} == {"F32"}
    stored = found.to_json()
    assert (
        stored["stored_bytes"]
        == sum(tensor["n_bytes"] for tensor in stored["tensors"])
        == 4 * sum(tensor.size for tensor in load_file(directory / "model.safetensors").values())
    )
    assert stored["shape"]["d_model"] == 64
    assert all(row["whole"] for row in stored["fits"])


@pytest.mark.parametrize("kind", ["mixtral", "qwen3moe"])
def test_mixture_is_told_the_same_of_both_files(kind: str, tmp_path: Path) -> None:
    shape = {"mixtral": {"sliding_window": None}, "qwen3moe": {"mlp_only_layers": [], "moe_intermediate_size": 256}}[kind]
    file, twin = make_twins(tmp_path, types.Q4_K, kind, vocab_size=320, num_attention_heads=2, head_dim=128, **shape)
    of_file, of_twin = (inspect(resolve(str(path)), Quant.AUTO, 32) for path in (file, twin))
    model = AutoModelForCausalLM.from_pretrained(twin)
    assert of_file.parameters == of_twin.parameters == model.num_parameters()
    experts = of_file.config.experts
    assert experts is not None
    assert of_twin.config.experts == replace(experts, normalised=kind == "mixtral")  # the file has no word for Qwen's
    idle = experts.n_experts - experts.n_chosen
    one = 3 * experts.d_ffn * of_file.config.d_model
    assert of_file.active_parameters == of_twin.active_parameters == model.num_parameters() - 3 * idle * one
    (stacked,) = (tensor for tensor in of_file.tensors if tensor.name == "blk.2.ffn_up_exps.weight")
    assert stacked.shape == (experts.n_experts, experts.d_ffn, 256)
    assert {row.kind: row.bits_per_value for row in of_file.formats} == {"Q4_K": 4.5, "F32": 32}
    assert "rounded again to int4" in of_file.notices[0]
    assert of_twin.notices == ()
    told = of_file.to_json()
    assert (told["experts"]["n_chosen"], told["sparse_blocks"]) == (experts.n_chosen, [0, 1, 2])


def test_device_that_holds_all_needs_no_other() -> None:
    assert fit(4 * GIB, 10, GIB / 10, GIB) == Fit(4 * GIB, True, 10, 1)


def test_others_hold_what_the_starter_cannot() -> None:
    # 4 GiB and what is not ours: 3 blocks beside the head, 4 without.
    assert fit(4 * GIB + OTHERS, 11, GIB, GIB) == Fit(4 * GIB + OTHERS, False, 4, 3)
    assert fit(4 * GIB + OTHERS, 12, GIB, GIB).devices == 4
    assert fit(4 * GIB + OTHERS - 1, 11, GIB, GIB) == Fit(4 * GIB + OTHERS - 1, False, 3, 4)  # to the byte
    assert fit(4 * GIB + OTHERS, 3, GIB, GIB).whole


def test_block_or_head_larger_than_a_device_fits_no_number_of_them() -> None:
    assert fit(4 * GIB, 10, 5 * GIB, GIB / 8) == Fit(4 * GIB, False, 0, None)
    assert fit(4 * GIB, 10, GIB, 5 * GIB) == Fit(4 * GIB, False, 3, None)
    assert fit(OTHERS // 2, 10, GIB, GIB) == Fit(OTHERS // 2, False, 0, None)


@pytest.mark.parametrize(("sizes", "said"), [({"ctx": -5}, "--ctx -5"), ({"ctx": 0}, "--ctx 0"), ({"block": 0}, "--block 0")])
def test_sizes_that_no_model_has_are_refused(twins: tuple[Path, Path], sizes: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        inspect(resolve(str(twins[0])), Quant.AUTO, **sizes)
