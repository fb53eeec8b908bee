"""GPTQ and AWQ checkpoints: packs mean exactly what the formula says, and the engine computes what transformers does with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from mdi.engine import graph
from mdi.engine.onnx_engine import Head, OnnxEngine
from mdi.engine.protocol import StageShape
from mdi.model.checkpoint import Checkpoint
from mdi.model.linear import dequantise, described
from mdi.model.packed import Embedding, PackedModel, open_packs, prepare, source_bytes
from mdi.model.packs import open_pack
from mdi.model.quantise import Quant, WeightFormat
from mdi.model.source import kept_as
from mdi.wire.frame import Row
from tests.checkpoints import make_checkpoint
from tests.coded_checkpoints import Coded, Scheme, code_checkpoint

SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
N_TOKENS = 12
SCHEMES = {
    "gptq": Scheme(),
    "gptq v2": Scheme(layout="gptq_v2"),
    "gptq symmetric, group 64": Scheme(symmetric=True, group=64),
    "gptq group 128, the last of down_proj shorter": Scheme(group=128),
    "gptq one group per row": Scheme(group=-1),
    "gptq 8 bits": Scheme(bits=8),
    "gptq 8 bits symmetric": Scheme(bits=8, symmetric=True),
    "gptq act-order": Scheme(act_order=True),
    "gptq act-order, 8 bits": Scheme(act_order=True, bits=8, layout="gptq_v2"),
    "gptq with its head": Scheme(quantised_head=True),
    "awq": Scheme("awq"),
    "awq group 64": Scheme("awq", group=64),
    "awq one group per row": Scheme("awq", group=-1),
}
FP32 = 1e-3  # largest difference of a logit, as for checkpoints of floats
ROUNDING = (
    0.08  # of a row's norm: activations are rounded to int8 per block in every layer (accuracy_level 4); measured: 0.03 to 0.04
)


@dataclass(frozen=True, slots=True)
class Made:
    floats: Path
    coded: Path
    matrices: dict[str, Coded]
    scheme: Scheme


@pytest.fixture(scope="module", params=SCHEMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    scheme = SCHEMES[request.param]
    floats = make_checkpoint(tmp_path_factory.mktemp("coded") / "floats", **SHAPE)
    return Made(floats, floats.parent / "coded", code_checkpoint(floats, scheme), scheme)


@pytest.fixture(scope="module")
def packed(made: Made) -> tuple[PackedModel, Path]:
    directory = made.coded.parent / "packs"
    return prepare(Checkpoint.open(made.coded), WeightFormat.of(Quant.NONE), directory), directory


def test_packs_hold_what_the_formula_says(made: Made, packed: tuple[PackedModel, Path]) -> None:
    model, directory = packed
    rows = {
        "qkv": ("q_proj", "k_proj", "v_proj"),
        "o": ("o_proj",),
        "gate_up": ("gate_proj", "up_proj"),
        "down": ("down_proj",),
    }
    for i, pack in enumerate(open_packs(model, directory, 0, SHAPE["num_hidden_layers"])):
        for name, modules in rows.items():
            wanted = [next(c for n, c in made.matrices.items() if f".{i}." in n and m in n).values() for m in modules]
            found = np.concatenate([dequantise(part) for part in pack.linear(name)])
            np.testing.assert_array_equal(found, np.concatenate(wanted))
            assert {described(part).bits for part in pack.linear(name)} == {made.scheme.bits}
            assert all(described(part).zeros != made.scheme.symmetric for part in pack.linear(name))


def logits_of(packed: tuple[PackedModel, Path], ids: list[int]) -> NDArray[np.float32]:
    model, directory = packed
    engine = OnnxEngine(model.config, open_packs(model, directory, 0, model.config.n_blocks), StageShape(1, 16, threads=1), 0)
    embedding = Embedding(open_pack(directory / model.embedding.filename), model.config.embedding_scale)
    hidden = engine.forward([Row(0, 0, len(ids), 0)], embedding.rows(ids))
    return Head(model.config, open_pack(directory / model.head.filename), threads=1).logits(hidden)


def test_logits_are_those_of_transformers_with_the_same_weights(
    made: Made, packed: tuple[PackedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.random.default_rng(1).integers(0, 320, N_TOKENS).tolist()
    twin = AutoModelForCausalLM.from_pretrained(made.floats, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        wanted = twin(torch.tensor([ids])).logits[0].numpy()
    rounded = logits_of(packed, ids)
    errors = np.linalg.norm(rounded - wanted, axis=1) / np.linalg.norm(wanted, axis=1)  # [T]
    assert np.median(errors) < ROUNDING
    monkeypatch.setattr(graph, "INT8_DOT", 0)  # the same weights with activations in fp32
    np.testing.assert_allclose(logits_of(packed, ids), wanted, atol=FP32, rtol=0)


def test_only_what_was_left_as_floats_is_rounded_and_to_8_bits(made: Made) -> None:
    directory = made.coded.parent / "packs-int4"
    model = prepare(Checkpoint.open(made.coded), WeightFormat.of(Quant.INT4, 32), directory)
    (head,) = open_pack(directory / model.head.filename).linears["head"]
    assert head.part.bits == (made.scheme.bits if made.scheme.quantised_head else 8)
    (block,) = open_packs(model, directory, 0, 1)
    assert block.linears["o"][0].part.bits == made.scheme.bits


def test_the_plan_counts_what_the_packs_take(made: Made) -> None:
    model = prepare(Checkpoint.open(made.coded), WeightFormat(4, 32), made.coded.parent / "packs-int4")
    block_bytes, head_bytes = source_bytes(Checkpoint.open(made.coded), WeightFormat(4, 32))
    # Headers of packs weigh in this small model; zeros that are the default, and an order, show only when they are read.
    assert model.block_bytes == pytest.approx(block_bytes, rel=0.1)
    assert model.head.n_bytes == pytest.approx(head_bytes, rel=0.1)


def test_other_bits_round_what_the_codes_mean(made: Made) -> None:
    source, fmt = kept_as(Checkpoint.open(made.coded), Quant.INT8, 32)
    assert fmt == WeightFormat(8, 32)
    assert not source.quantised
    for name, coded in made.matrices.items():
        (values,) = source.linear(name)
        np.testing.assert_array_equal(values, coded.values())
    kept, main = kept_as(Checkpoint.open(made.coded), Quant.AUTO)
    assert kept.quantised
    assert kept.fingerprint() != source.fingerprint()
    assert main == WeightFormat(made.scheme.bits, 128 if made.scheme.group == -1 else made.scheme.group)
