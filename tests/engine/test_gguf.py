"""GGUF models compute what transformers computes with the same weights, and what llama.cpp computes with the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from mdi.engine import graph
from mdi.engine.onnx_engine import Head, OnnxEngine
from mdi.engine.protocol import StageShape
from mdi.model.gguf import types
from mdi.model.gguf.blocks import UNPACKERS
from mdi.model.gguf.convert import FLOATS, TARGETS
from mdi.model.linear import dequantise, described
from mdi.model.packed import Embedding, PackedModel, open_packs, prepare
from mdi.model.packs import open_pack
from mdi.model.quantise import Quant, WeightFormat
from mdi.model.source import Model, resolve
from mdi.wire.frame import Row
from tests.checkpoints import YARN
from tests.gguf_models import make_twins

N_TOKENS, N_VOCAB, CTX = 24, 320, 64
FP32 = 1e-3  # largest difference of a logit, as for checkpoints of floats; measured: 1e-5
COSINE = 0.999  # measured: int8 activations 0.9997 to 1.0000 from fp32, llama.cpp's 0.9993 (Q6_K) to 1.0000
TYPES = {ggml_type.name: ggml_type for ggml_type in (*FLOATS, *UNPACKERS)}


@pytest.fixture(scope="module", params=TYPES)
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_twins(tmp_path_factory.mktemp(request.param), TYPES[request.param], vocab_size=N_VOCAB)


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    return np.random.default_rng(1).integers(0, N_VOCAB, N_TOKENS).tolist()


def packed(file: Path, quant: Quant = Quant.AUTO, block: int = 32) -> tuple[PackedModel, Path]:
    """Floats as fp32 where `quant` is AUTO: what is compared is the file's own values."""
    model, directory = Model(resolve(str(file))), file.parent / f"packs-{quant}"
    fmt = model.weight_format(quant, block) if model.checkpoint.quantised else WeightFormat(32)
    return prepare(model.weights(quant), fmt, directory), directory


class Engines:
    """A model in one stage."""

    def __init__(self, model: PackedModel, directory: Path) -> None:
        shape = StageShape(1, CTX, threads=1)
        self._blocks = OnnxEngine(model.config, open_packs(model, directory, 0, model.config.n_blocks), shape, 0)
        self._embedding = Embedding(open_pack(directory / model.embedding.filename), model.config.embedding_scale)
        self._head = Head(model.config, open_pack(directory / model.head.filename), threads=1)

    def logits(self, ids: list[int], position: int = 0) -> NDArray[np.float32]:
        return self._head.logits(self._blocks.forward([Row(0, position, len(ids), 0)], self._embedding.rows(ids)))

    def greedy(self, ids: list[int], count: int) -> list[int]:
        found, last = [], self.logits(ids)[-1]
        for position in range(len(ids), len(ids) + count):
            found.append(int(last.argmax()))
            last = self.logits(found[-1:], position)[0]
        return found


def wanted(twin: Path, ids: list[int]) -> NDArray[np.float32]:
    model = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_logits_are_those_of_transformers(
    twins: tuple[Path, Path], token_ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, twin = twins
    expected = wanted(twin, token_ids)
    assert (cosines(Engines(*packed(file)).logits(token_ids), expected) > COSINE).all()
    monkeypatch.setattr(graph, "INT8_DOT", 0)  # the same weights with activations in fp32
    np.testing.assert_allclose(Engines(*packed(file)).logits(token_ids), expected, atol=FP32, rtol=0)


def test_packs_hold_the_forms_that_were_announced(twins: tuple[Path, Path]) -> None:
    file, _ = twins
    model, directory = packed(file)
    weights = Model(resolve(str(file))).checkpoint
    for pack in open_packs(model, directory, 0, model.config.n_blocks):
        for name in ("qkv", "o", "gate_up", "down"):
            for part in pack.linear(name):
                target = TARGETS.get(TYPES[file.parent.name[:-1]])
                assert described(part).bits == (target.bits if target else 32)
    blocks = sum(part.n_bytes for part in weights.forms(weights.head) or ())
    assert (blocks > 0) == weights.quantised


def test_embedding_rows_are_the_files_own(twins: tuple[Path, Path]) -> None:
    file, _ = twins
    model, directory = packed(file)
    weights = Model(resolve(str(file))).weights(Quant.NONE)
    table = np.concatenate([dequantise(part) for part in weights.linear(weights.embedding)])
    rows = Embedding(open_pack(directory / model.embedding.filename), model.config.embedding_scale).rows([3, 319, 0])
    np.testing.assert_allclose(rows, table[[3, 319, 0]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("quant", [Quant.INT8, Quant.INT4])
def test_rounding_again_gives_the_format_asked_for(twins: tuple[Path, Path], token_ids: list[int], quant: Quant) -> None:
    file, twin = twins
    model, directory = packed(file, quant)
    bits = {described(part).bits for pack in open_packs(model, directory, 0, 1) for part in pack.linear("qkv")}
    if Model(resolve(str(file))).checkpoint.quantised:
        assert bits == {8 if quant is Quant.INT8 else 4}
    assert cosines(Engines(model, directory).logits(token_ids), wanted(twin, token_ids)).mean() > (
        0.99 if quant is Quant.INT8 else 0.9
    )


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1 + i / 10 for i in range(32)],
    "long_factor": [1 + i / 2 for i in range(32)],
}
GEMMA = {"query_pre_attn_scalar": 32, "sliding_window": 16}
KINDS: dict[str, dict[str, Any]] = {
    "llama-tied": {},
    "llama-one-kv-head": {},
    "llama-wide-heads": {},
    "llama-3.1-rope": {},
    "llama-linear-rope": {},
    "llama-biases": {},
    "mistral": {},
    "qwen2": {},
    "qwen2-yarn": {},
    "qwen3": {},
    "qwen3-yarn": {"rope_parameters": YARN | {"rope_theta": 1e6, "original_max_position_embeddings": 128}},
    "smollm3": {"no_rope_layer_interval": 4, "num_hidden_layers": 5},
    "phi3": {"sliding_window": None},  # llama.cpp does not compute it
    # Which list holds is decided by the context: ours is CTX, llama.cpp's at least 256, transformers' the number of tokens.
    "phi3-short": {"rope_parameters": LONGROPE, "max_position_embeddings": 1024, "original_max_position_embeddings": 512},
    "phi3-long": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    "gemma2": GEMMA,
    "gemma3": GEMMA | {"num_hidden_layers": 4},
    "mixtral": {"sliding_window": None},
    "qwen3moe": {"mlp_only_layers": [], "norm_topk_prob": True, "moe_intermediate_size": 128},
}


@pytest.fixture(scope="module", params=KINDS)
def families(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    shape = {"vocab_size": N_VOCAB} | KINDS[request.param]
    return make_twins(tmp_path_factory.mktemp(request.param), types.F32, request.param, **shape)


def test_families_equal_transformers(families: tuple[Path, Path], token_ids: list[int]) -> None:
    file, twin = families
    np.testing.assert_allclose(Engines(*packed(file)).logits(token_ids), wanted(twin, token_ids), atol=FP32, rtol=0)


def test_families_equal_llama_cpp(families: tuple[Path, Path], token_ids: list[int]) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    file, _ = families
    llama = opened(llama_cpp, file)
    llama.eval(token_ids)
    engines = Engines(*packed(file))
    assert cosines(engines.logits(token_ids), np.array(llama.scores[:N_TOKENS])).min() > COSINE
    assert engines.greedy(token_ids, 16) == greedy_of(llama, 16)
    llama.close()


def opened(llama_cpp: Any, file: Path) -> Any:
    """With KV in fp32, as ours: its own fp16 changes a greedy token now and then."""
    fp32 = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(
        str(file), n_ctx=CTX, n_threads=1, logits_all=True, type_k=fp32, type_v=fp32, flash_attn=False, verbose=False
    )


def greedy_of(llama: Any, count: int) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        found.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        llama.eval(found[-1:])
    return found


def test_logits_and_greedy_tokens_are_those_of_llama_cpp(
    twins: tuple[Path, Path], token_ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our activations stay in fp32, so that only llama.cpp's own rounding of them is seen; ours is measured above."""
    llama_cpp = pytest.importorskip("llama_cpp")
    monkeypatch.setattr(graph, "INT8_DOT", 0)
    file, _ = twins
    llama = opened(llama_cpp, file)
    llama.eval(token_ids)
    engines = Engines(*packed(file))
    assert cosines(engines.logits(token_ids), np.array(llama.scores[:N_TOKENS])).mean() > COSINE
    if file.parent.name[:-1] in (
        "F32",
        "F16",
    ):  # llama.cpp rounds activations to bf16 for BF16, and that changes a token now and then
        assert engines.greedy(token_ids, 16) == greedy_of(llama, 16)
    llama.close()
