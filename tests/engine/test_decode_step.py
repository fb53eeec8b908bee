"""Steps that stay bound give what steps that are bound anew give: in any slots and order, after chunks, at the end of the context."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mdi.engine import onnx_engine
from mdi.engine.onnx_engine import OnnxEngine
from mdi.engine.protocol import StageShape
from mdi.errors import InternalError
from mdi.model.checkpoint import Checkpoint
from mdi.model.kv import KvType
from mdi.model.packed import PackedModel, open_packs, prepare
from mdi.model.quantise import Quant, WeightFormat
from mdi.wire.frame import Row
from tests.checkpoints import make_checkpoint

SLOTS, CTX = 4, 24


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedModel, Path]:
    directory = tmp_path_factory.mktemp("packs")
    return prepare(
        Checkpoint.open(make_checkpoint(directory / "m", "llama")), WeightFormat.of(Quant.NONE), directory
    ), directory


def engine_of(packed: tuple[PackedModel, Path]) -> OnnxEngine:
    model, directory = packed
    packs = open_packs(model, directory, 0, model.config.n_blocks)
    return OnnxEngine(model.config, packs, StageShape(SLOTS, CTX, 1, KvType.FP32), 0)


def hidden_states(n_tokens: int, d_model: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n_tokens, d_model)).astype(np.float32)


@pytest.mark.parametrize("most", [2, 64])
def test_kept_steps_equal_steps_that_are_bound_anew(
    packed: tuple[PackedModel, Path], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(onnx_engine, "MOST_DECODE_STEPS", most)
    kept, d_model, rng = engine_of(packed), packed[0].config.d_model, random.Random(3)
    held, steps = [0] * SLOTS, []
    while len(steps) < 60:
        slots = rng.sample(range(SLOTS), rng.randint(1, SLOTS))
        counts = [rng.choice([1, 1, 1, 1, 3]) for _ in slots] if len(steps) % 5 == 0 else [1] * len(slots)
        for slot, count in zip(slots, counts, strict=True):
            if held[slot] + count > CTX or rng.random() < 0.05:
                held[slot] = 0  # a new conversation
        rows = tuple(Row(slot, held[slot], count, 1) for slot, count in zip(slots, counts, strict=True))
        for row in rows:
            held[row.slot] += row.count
        steps.append(rows)
    got = [kept.forward(rows, hidden_states(sum(row.count for row in rows), d_model, i)) for i, rows in enumerate(steps)]
    assert 0 < len(kept._decoding) <= most

    anew = engine_of(packed)
    for i, rows in enumerate(steps):
        anew._decoding.clear()
        expected = anew.forward(rows, hidden_states(sum(row.count for row in rows), d_model, i))
        np.testing.assert_array_equal(got[i], expected)


def test_a_result_stays_when_the_next_step_runs(packed: tuple[PackedModel, Path]) -> None:
    engine, d_model = engine_of(packed), packed[0].config.d_model
    first = engine.forward([Row(0, 0, 1, 1)], hidden_states(1, d_model, 0))
    before = first.copy()
    engine.forward([Row(0, 1, 1, 1)], hidden_states(1, d_model, 1))
    np.testing.assert_array_equal(first, before)


def test_a_kept_step_ends_at_the_context(packed: tuple[PackedModel, Path]) -> None:
    engine, d_model = engine_of(packed), packed[0].config.d_model
    for position in range(CTX):
        engine.forward([Row(1, position, 1, 1)], hidden_states(1, d_model, position))
    with pytest.raises(InternalError, match="outside"):
        engine.forward([Row(1, CTX, 1, 1)], hidden_states(1, d_model, 0))
