"""Mixtures of experts in GGUF files, in each format: the packs hold the file's own values where the kernel can, and the model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mdi.engine import experts_graph, graph
from mdi.model.checkpoint import Checkpoint
from mdi.model.gguf import types
from mdi.model.gguf.types import GgmlType
from mdi.model.linear import dequantise, described
from mdi.model.packed import block_tensors, experts_format, open_packs, prepare
from mdi.model.quantise import Quant, WeightFormat
from mdi.model.source import Model, resolve
from tests.engine.test_gguf import COSINE, FP32, N_TOKENS, N_VOCAB, Engines, cosines, opened, packed, wanted
from tests.gguf_models import make_twins
from tests.model.gguf.test_weights import read_metadata, read_tensors
from tests.model.gguf.written import Written

KEPT = (types.Q4_0, types.Q5_0, types.Q8_0, types.Q3_K, types.Q6_K, types.IQ4_NL)
ROUNDED = (types.Q4_1, types.Q5_1, types.Q2_K, types.Q4_K, types.Q5_K)
N_EXPERTS = 4


def twins_of(kind: GgmlType, directory: Path, *, single_experts: bool = False) -> tuple[Path, Path]:
    return make_twins(
        directory, kind, "mixtral", vocab_size=N_VOCAB, num_hidden_layers=2, sliding_window=None, single_experts=single_experts
    )


@pytest.fixture(scope="module", params=[*KEPT, *ROUNDED], ids=lambda kind: kind.name)
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[GgmlType, Path, Path]:
    return request.param, *twins_of(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    return np.random.default_rng(1).integers(0, N_VOCAB, N_TOKENS).tolist()


def test_packs_hold_the_files_own_values_where_the_kernel_has_the_form(twins: tuple[GgmlType, Path, Path]) -> None:
    kind, file, twin = twins
    model, directory = packed(file)
    state = load_file(twin / "model.safetensors")
    (pack,) = open_packs(model, directory, 1, 2)

    def of_twin(expert: int, name: str) -> np.ndarray:
        return state[f"model.layers.1.block_sparse_moe.experts.{expert}.{name}.weight"]

    gate_up = [np.stack((of_twin(e, "w1"), of_twin(e, "w3")), axis=1).reshape(-1, 256) for e in range(N_EXPERTS)]
    down = [of_twin(e, "w2") for e in range(N_EXPERTS)]
    for name, expected in (("experts_gate_up", np.concatenate(gate_up)), ("experts_down", np.concatenate(down))):
        found = np.concatenate([dequantise(part) for part in pack.linear(name)])
        if kind in KEPT:
            np.testing.assert_array_equal(found, expected)
        else:
            bits = described(pack.linear(name)[0]).bits
            error = np.abs(found - expected).mean() / np.abs(expected).mean()
            assert 0 < error < {4: 0.15, 8: 0.01}[bits]


def test_what_is_rounded_is_said(twins: tuple[GgmlType, Path, Path]) -> None:
    kind, file, _ = twins
    notices = Model(resolve(str(file))).notices(Quant.AUTO)
    assert len(notices) == (kind in ROUNDED)
    assert all("experts have no kernel for all formats" in notice for notice in notices)
    assert [("--quant int8" in notice) for notice in notices] == [kind in (types.Q4_1, types.Q2_K, types.Q4_K) for _ in notices]


def test_bytes_are_known_before_anything_is_converted(twins: tuple[GgmlType, Path, Path]) -> None:
    _, file, _ = twins
    model = Model(resolve(str(file)))
    block, head = model.packed_bytes(Quant.AUTO, model.weight_format(Quant.AUTO))
    made, _ = packed(file)
    assert 0 <= made.block_bytes - block < 8192  # the header
    assert 0 <= made.head.n_bytes - head < 8192


def test_logits_are_those_of_transformers(
    twins: tuple[GgmlType, Path, Path], token_ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, file, twin = twins
    expected = wanted(twin, token_ids)
    found = Engines(*packed(file)).logits(token_ids)
    assert np.median(cosines(found, expected)) > (COSINE if kind in KEPT else 0.9)
    if kind is types.Q4_0:  # activations in fp32: a kernel that experts of 8 bits have not
        monkeypatch.setattr(graph, "INT8_DOT", 0)
        monkeypatch.setattr(experts_graph, "INT8_DOT", 0)
        np.testing.assert_allclose(Engines(*packed(file)).logits(token_ids), expected, atol=FP32, rtol=0)


def test_logits_are_those_of_llama_cpp(token_ids: list[int], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    file, _ = twins_of(types.Q8_0, tmp_path)
    llama = opened(llama_cpp, file)
    llama.eval(token_ids)
    assert np.median(cosines(Engines(*packed(file)).logits(token_ids), np.array(llama.scores[:N_TOKENS]))) > COSINE
    llama.close()


def test_files_with_a_tensor_for_each_expert_hold_the_same_model(tmp_path: Path) -> None:
    stacked, _ = twins_of(types.Q4_0, tmp_path / "stacked")
    single, _ = twins_of(types.Q4_0, tmp_path / "single", single_experts=True)
    assert [ref.sha256 for ref in packed(stacked)[0].blocks] == [ref.sha256 for ref in packed(single)[0].blocks]


def test_qwen_and_its_checkpoint_give_the_same_packs(tmp_path: Path) -> None:
    """The file's floats and the checkpoint's go through the same door. The file does not say that only some blocks are sparse."""
    file, twin = make_twins(
        tmp_path, types.F32, "qwen3moe", vocab_size=N_VOCAB, mlp_only_layers=[], norm_topk_prob=True, moe_intermediate_size=128
    )
    weights, checkpoint = Model(resolve(str(file))).checkpoint, Checkpoint.open(twin)
    assert weights.config.experts == checkpoint.config.experts
    assert weights.config.sparse_blocks == checkpoint.config.sparse_blocks == (0, 1, 2)
    for fmt in (WeightFormat(32), WeightFormat(4, 32)):
        a, b = (prepare(source, fmt, tmp_path / f"packs-{i}") for i, source in enumerate((weights, checkpoint)))
        assert [ref.sha256 for ref in a.blocks] == [ref.sha256 for ref in b.blocks]


def test_experts_of_several_formats_are_rounded_together(tmp_path: Path) -> None:
    four, _ = twins_of(types.Q4_0, tmp_path / "four")
    six, _ = twins_of(types.Q6_K, tmp_path / "six")
    tensors, name = read_tensors(four), "blk.1.ffn_down_exps.weight"
    file = Written(read_metadata(four), tensors | {name: read_tensors(six)[name]}).save(tmp_path / "mixed.gguf")
    weights = Model(resolve(str(file))).checkpoint
    assert weights.main_format() == WeightFormat(4, 32)
    assert experts_format(weights, 0) == WeightFormat(4, 32)
    assert experts_format(weights, 1) is None
    tensors_of_block = block_tensors(weights, 1, WeightFormat(8, 64))
    for name in ("experts_gate_up", "experts_down"):
        (part,) = tensors_of_block[name]
        assert (described(part).bits, described(part).block) == (8, 64)
    assert len(Model(resolve(str(file))).notices(Quant.AUTO)) == 1
