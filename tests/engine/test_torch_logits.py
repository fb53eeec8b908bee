"""The torch engine's logits are those of transformers and of the onnxruntime engine, whatever the family, split and order of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from mdi.engine.onnx_engine import Head, OnnxEngine
from mdi.engine.protocol import StageShape
from mdi.engine.torch_engine import TorchEngine, TorchHead
from mdi.errors import InternalError, ModelError
from mdi.model.checkpoint import Checkpoint
from mdi.model.config import ModelConfig
from mdi.model.linear import dequantise
from mdi.model.packed import Embedding, PackedModel, open_packs, prepare
from mdi.model.packs import Pack, open_pack
from mdi.model.quantise import Quant, WeightFormat
from mdi.wire.frame import Row
from tests.checkpoints import KINDS, make_checkpoint
from tests.engine.torch_stages import CPU, CTX, TorchStages

N_BLOCKS, N_TOKENS = 5, 48
TOLERANCE = 1e-3  # max abs in fp32, as the issue asks; measured: 3e-5
SPLITS = {1: (5,), 3: (1, 3, 1)}


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "m", request.param, num_hidden_layers=N_BLOCKS)


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    return np.random.default_rng(1).integers(0, 320, N_TOKENS).tolist()


def transformers_logits(checkpoint: Path, token_ids: list[int], weights: dict[str, torch.Tensor]) -> NDArray[np.float32]:
    # A quantised head is no longer its embedding, if it was.
    untied = {"tie_word_embeddings": False} if weights else {}
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager", **untied)
    model.load_state_dict(model.state_dict() | weights)  # refuses names that it does not know
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


@pytest.fixture(scope="module")
def expected(checkpoint: Path, token_ids: list[int]) -> NDArray[np.float32]:
    return transformers_logits(checkpoint, token_ids, {})


@pytest.fixture(scope="module")
def packs(checkpoint: Path) -> tuple[PackedModel, Path]:
    directory = checkpoint.parent / "packs"
    return prepare(Checkpoint.open(checkpoint), WeightFormat.of(Quant.NONE), directory), directory


@pytest.mark.parametrize("n_stages", SPLITS)
def test_prefill_equals_transformers(packs, token_ids, expected, n_stages) -> None:
    logits = TorchStages(*packs, SPLITS[n_stages]).logits([Row(0, 0, N_TOKENS, 0)], token_ids)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("n_stages", SPLITS)
def test_chunked_prefill_then_decode_equals_transformers(packs, token_ids, expected, n_stages) -> None:
    found = chunked(TorchStages(*packs, SPLITS[n_stages]), token_ids)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def chunked(stages: TorchStages, token_ids: list[int]) -> NDArray[np.float32]:
    """Logits of two chunks, a single token between them, and the rest one by one."""
    found, position = [], 0
    for count in (17, 1, 13, *[1] * (N_TOKENS - 31)):
        found.append(stages.logits([Row(0, position, count, 0)], token_ids[position : position + count]))
        position += count
    return np.concatenate(found)


def test_ragged_batch_with_an_idle_slot_between_equals_transformers(packs, token_ids, expected) -> None:
    stages = TorchStages(*packs, SPLITS[1], n_slots=4)
    stages.logits([Row(3, 0, 20, 0)], token_ids[:20])
    position, decoded = 0, 20
    for count in (7, 16, 9):
        rows = [Row(1, position, count, 0), Row(3, decoded, 1, 0)]
        logits = stages.logits(rows, [*token_ids[position : position + count], token_ids[decoded]])
        wanted = np.concatenate((expected[position : position + count], expected[decoded : decoded + 1]))
        np.testing.assert_allclose(logits, wanted, atol=TOLERANCE, rtol=0)
        position, decoded = position + count, decoded + 1


def test_decoding_leaves_the_slots_beside_it_as_they_are(packs, token_ids, expected) -> None:
    """Slots 1, 2 and 4 of five decode in turns: a step takes neighbours along that have no token in it, before its own ones too."""
    stages = TorchStages(*packs, SPLITS[1], n_slots=5)
    held = {slot: 8 + slot for slot in (1, 2, 4)}
    for slot, count in held.items():
        stages.logits([Row(slot, 0, count, 0)], token_ids[:count])
    for slots in ((1, 2), (4,), (4, 1), (2,), (1, 2, 4), (2, 4), (1, 4)) * 2:
        logits = stages.logits([Row(slot, held[slot], 1, 0) for slot in slots], [token_ids[held[slot]] for slot in slots])
        np.testing.assert_allclose(logits, expected[[held[slot] for slot in slots]], atol=TOLERANCE, rtol=0)
        held |= {slot: held[slot] + 1 for slot in slots}


def test_a_slot_starts_again_over_old_tokens(packs, token_ids, expected) -> None:
    stages = TorchStages(*packs, SPLITS[1])
    stages.logits([Row(0, 0, 40, 0)], token_ids[::-1][:40])
    found = [stages.logits([Row(0, 0, 10, 0)], token_ids[:10])]
    found += [stages.logits([Row(0, position, 1, 0)], [token_ids[position]]) for position in (10, 11)]
    found.append(stages.logits([Row(0, 12, 18, 0)], token_ids[12:30]))
    np.testing.assert_allclose(np.concatenate(found), expected[:30], atol=TOLERANCE, rtol=0)


def test_logits_are_those_of_onnxruntime_and_a_stage_of_each_kind_works_together(packs, token_ids, expected) -> None:
    packed, directory = packs
    shape = StageShape(1, CTX, 1)
    stages = TorchStages(*packs, (3, 2))
    first = stages.engines[0]
    second = OnnxEngine(packed.config, open_packs(packed, directory, 3, 5), shape, 3)
    head = Head(packed.config, open_pack(directory / packed.head.filename), 1)
    hidden = Embedding(open_pack(directory / packed.embedding.filename), packed.config.embedding_scale).rows(token_ids)
    rows = [Row(0, 0, N_TOKENS, 0)]
    mixed = head.logits(second.forward(rows, first.forward(rows, hidden)))
    np.testing.assert_allclose(mixed, expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(mixed, stages.logits(rows, token_ids), atol=TOLERANCE, rtol=0)


def test_quantised_packs_equal_transformers_with_the_dequantised_weights(checkpoint, token_ids) -> None:
    """Codes of both widths: of 4 bits in blocks, of 8 in the head."""
    fmt = WeightFormat.of(Quant.INT4, 32)
    directory = checkpoint.parent / "packs"
    packed = prepare(Checkpoint.open(checkpoint), fmt, directory)
    expected = transformers_logits(checkpoint, token_ids, dequantised_weights(packed, directory))
    np.testing.assert_allclose(chunked(TorchStages(packed, directory, SPLITS[1]), token_ids), expected, atol=TOLERANCE, rtol=0)


def dequantised_weights(packed: PackedModel, directory: Path) -> dict[str, torch.Tensor]:
    """The packs' linear layers under transformers' names."""
    weights = {}
    for i, pack in enumerate(open_packs(packed, directory, 0, packed.config.n_blocks)):
        for name in pack.linears:
            weights |= {f"model.layers.{i}.{k}": value for k, value in named(packed.config, name, weight(pack, name)).items()}
    weights["lm_head.weight"] = weight(open_pack(directory / packed.head.filename), "head")
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def named(config: ModelConfig, name: str, value: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    fused = config.architecture == "Phi3ForCausalLM"
    match name:
        case "qkv" if not fused:
            rows = np.split(value, [config.d_q, config.d_q + config.d_kv])
            return {f"self_attn.{each}_proj.weight": part for each, part in zip("qkv", rows, strict=True)}
        case "gate_up" if not fused:
            return {f"mlp.{each}_proj.weight": part for each, part in zip(("gate", "up"), np.split(value, 2), strict=True)}
        case "qkv" | "o":
            return {f"self_attn.{name}_proj.weight": value}
        case "gate_up" | "down":
            return {f"mlp.{name}_proj.weight": value}
        case "experts_gate_up":  # rows of gate and up take turns in packs, and stand one above the other in transformers
            value = value.reshape(config.experts.n_experts, -1, 2, config.d_model)
            return {"mlp.experts.gate_up_proj": np.concatenate((value[:, :, 0], value[:, :, 1]), axis=1)}
        case "experts_down":
            return {"mlp.experts.down_proj": value.reshape(config.experts.n_experts, config.d_model, -1)}
    raise AssertionError(name)


def weight(pack: Pack, name: str) -> NDArray[np.float32]:
    return np.concatenate([dequantise(part) for part in pack.linear(name)])


def test_an_exact_context_does_not_turn_queries_as_a_longer_one_would(tmp_path: Path, token_ids) -> None:
    """KV has more rows than the context; LongRoPE's choice between its two lists goes by the context."""
    checkpoint = make_checkpoint(tmp_path / "m", "phi3-short", original_max_position_embeddings=CTX)
    packed = prepare(Checkpoint.open(checkpoint), WeightFormat.of(Quant.NONE), tmp_path / "packs")
    logits = TorchStages(packed, tmp_path / "packs", (3,)).logits([Row(0, 0, N_TOKENS, 0)], token_ids)
    np.testing.assert_allclose(logits, transformers_logits(checkpoint, token_ids, {}), atol=TOLERANCE, rtol=0)


def test_a_pack_of_another_block_is_refused(tmp_path: Path) -> None:
    """In this model every second block is a mixture of experts."""
    packed = prepare(
        Checkpoint.open(make_checkpoint(tmp_path / "m", "qwen3moe")), WeightFormat.of(Quant.NONE), tmp_path / "packs"
    )
    packs = open_packs(packed, tmp_path / "packs", 0, 2)
    for start, pack in enumerate(reversed(packs)):
        with pytest.raises(ModelError, match="no linear layer"):
            TorchEngine(packed.config, [pack], StageShape(1, CTX, 1), start, CPU)


def test_bfloat16_stays_close(packs, token_ids, expected) -> None:
    """What an accelerator computes in, where the CPU computes the same type."""
    found = chunked(TorchStages(*packs, SPLITS[1], dtype=torch.bfloat16), token_ids)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    # Single tokens may fall further where rounding chooses another expert, or scores are large: transformers' own bfloat16 does too,
    # to 0.92 with mixtral and 0.77 with gemma2-no-softcaps.
    assert np.median(cosine) > 0.99  # measured: 0.994 with mixtral, 0.999 and more with most


def test_packs_that_are_not_what_they_should_be_are_refused(packs) -> None:
    packed, directory = packs
    head = open_pack(directory / packed.head.filename)
    with pytest.raises(ModelError, match="no transformer block"):
        TorchEngine(packed.config, [head], StageShape(1, CTX, 1), 0, CPU)
    with pytest.raises(ModelError, match="no head"):
        TorchHead(packed.config, open_packs(packed, directory, 0, 1)[0], 1, CPU)


def test_steps_outside_the_stage_are_refused(packs, token_ids) -> None:
    stages = TorchStages(*packs, SPLITS[1])
    for row in (Row(1, 0, 1, 0), Row(0, CTX, 1, 0), Row(0, CTX - 1, 2, 0)):
        with pytest.raises(InternalError, match="outside the stage"):
            stages.logits([row], token_ids[: row.count])
