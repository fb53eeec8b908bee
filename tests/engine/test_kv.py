"""KV in 8 bits: beside fp32, in both of its ways, in slots, at any split; and what it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mdi.engine.batch import Layout
from mdi.engine.kv_plan import KvPlan
from mdi.engine.observe import BlockObserver
from mdi.engine.onnx_engine import OnnxEngine
from mdi.engine.protocol import StageShape
from mdi.errors import ModelError
from mdi.model.checkpoint import Checkpoint
from mdi.model.kv import KvType
from mdi.model.packed import PackedModel, open_packs, prepare
from mdi.model.quantise import Quant, WeightFormat
from mdi.wire.frame import Row
from tests.checkpoints import KINDS, make_checkpoint
from tests.engine.test_logits import CTX, N_BLOCKS, Stages

FP32 = WeightFormat.of(Quant.NONE)
INT8 = KvType.INT8
N_TOKENS = 48
WHOLE = (N_BLOCKS,)
# Of the logits' deviation. Codes have steps of some 1/60 of a channel's deviation, and random weights average nothing out; measured: 0.02.
TOLERANCE = 0.05
# Between the two ways, which differ in the order of sums. A sum that falls on the edge of a code of the next block moves it by a step.
SAME = 0.01


@pytest.fixture(scope="module", params=KINDS)
def packs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedModel, Path]:
    directory = tmp_path_factory.mktemp("packs")
    checkpoint = Checkpoint.open(make_checkpoint(directory / "m", request.param, num_hidden_layers=N_BLOCKS))
    return prepare(checkpoint, FP32, directory, observer=BlockObserver(checkpoint.config, 1)), directory


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedModel, Path]:
    directory = tmp_path_factory.mktemp("llama")
    checkpoint = Checkpoint.open(make_checkpoint(directory / "m", "llama", num_hidden_layers=N_BLOCKS))
    return prepare(checkpoint, FP32, directory, observer=BlockObserver(checkpoint.config, 1)), directory


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    return np.random.default_rng(1).integers(0, 320, N_TOKENS).tolist()


def one_by_one(stages: Stages, token_ids: list[int], slot: int = 0) -> NDArray[np.float32]:
    return np.concatenate([stages.logits([Row(slot, i, 1, 0)], [token]) for i, token in enumerate(token_ids)])


def distance(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Root mean square of the difference, in deviations of the wanted."""
    return float(np.sqrt(((found - wanted) ** 2).mean()) / wanted.std())


def test_both_ways_are_near_fp32_and_nearer_to_each_other(packs: tuple[PackedModel, Path], token_ids: list[int]) -> None:
    wanted = Stages(*packs, WHOLE).logits([Row(0, 0, N_TOKENS, 0)], token_ids)
    expanded = Stages(*packs, WHOLE, kv_type=INT8).logits([Row(0, 0, N_TOKENS, 0)], token_ids)
    in_place = one_by_one(Stages(*packs, WHOLE, kv_type=INT8), token_ids)
    assert 0 < distance(expanded, wanted) < TOLERANCE
    assert 0 < distance(in_place, wanted) < TOLERANCE
    assert distance(in_place, expanded) < SAME
