"""A large stage lies in several sessions. Nothing but the time to load tells them from one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from mdi.engine import onnx_engine
from mdi.engine.observe import BlockObserver
from mdi.engine.onnx_engine import MAX_SESSIONS, MIN_SESSION_BYTES, OnnxEngine, open_sessions, sections
from mdi.engine.protocol import StageShape
from mdi.errors import ModelError
from mdi.model.checkpoint import Checkpoint
from mdi.model.kv import KvType
from mdi.model.packed import PackedModel, open_packs, prepare
from mdi.model.quantise import Quant, WeightFormat
from mdi.profile.memory import give_back_freed_memory
from mdi.wire.frame import Row
from tests.checkpoints import make_checkpoint
from tests.engine.test_session import product_graph

N_BLOCKS, CTX, WIDE = 5, 512, 4096
MIB = 1 << 20


def test_a_small_stage_and_a_single_thread_have_one_session() -> None:
    assert sections(16, 2 * MIN_SESSION_BYTES - 1, threads=8) == [range(16)]
    assert sections(32, 16 * MIN_SESSION_BYTES, threads=1) == [range(32)]
    assert sections(1, 16 * MIN_SESSION_BYTES, threads=8) == [range(1)]


@pytest.mark.parametrize(("threads", "weights", "count"), [(2, 16, 2), (8, 3, 3), (64, 64, MAX_SESSIONS)])
def test_a_large_stage_is_cut_evenly(threads: int, weights: int, count: int) -> None:
    found = sections(33, weights * MIN_SESSION_BYTES, threads)
    assert len(found) == count
    assert list(itertools.chain(*found)) == list(range(33))
    assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedModel, Path]:
    directory = tmp_path_factory.mktemp("packs")
    path = make_checkpoint(directory / "m", num_hidden_layers=N_BLOCKS, intermediate_size=WIDE, max_position_embeddings=CTX)
    checkpoint = Checkpoint.open(path)
    return prepare(
        checkpoint, WeightFormat.of(Quant.INT4, 32), directory, observer=BlockObserver(checkpoint.config, 1)
    ), directory


def engine(
    packs: tuple[PackedModel, Path], count: int, start: int, kv_type: KvType, monkeypatch: pytest.MonkeyPatch
) -> OnnxEngine:
    """Blocks from `start` on in `count` sessions."""
    packed, directory = packs
    blocks = open_packs(packed, directory, start, N_BLOCKS)
    monkeypatch.setattr(onnx_engine, "MIN_SESSION_BYTES", sum(pack.path.stat().st_size for pack in blocks) // count)
    return OnnxEngine(packed.config, blocks, StageShape(3, CTX, count, kv_type), start)


def steps(stage: OnnxEngine, d_model: int) -> list[NDArray[np.float32]]:
    """A prompt, tokens, and a batch of both."""
    rng = np.random.default_rng(2)
    made = []
    for rows in (
        [Row(0, 0, 40, 0)],
        [Row(0, 40, 1, 0)],
        [Row(0, 41, 1, 0), Row(2, 0, 9, 0)],
        [Row(0, 42, 1, 0), Row(2, 9, 1, 0)],
    ):
        hidden = rng.standard_normal((sum(row.count for row in rows), d_model), dtype=np.float32)
        made.append(stage.forward(rows, hidden))
    return made


@pytest.mark.parametrize("kv_type", [KvType.FP32, KvType.INT8])
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_several_sessions_compute_what_one_does_to_the_bit(packs, monkeypatch, kv_type, start, count) -> None:
    d_model = packs[0].config.d_model
    cut = engine(packs, count, start, kv_type, monkeypatch)
    assert len(cut._sections) == count
    whole = engine(packs, 1, start, kv_type, monkeypatch)
    assert cut.kv_bytes == whole.kv_bytes
    for found, wanted in zip(steps(cut, d_model), steps(whole, d_model), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_sessions_do_not_keep_the_memory_of_a_prompt_each(packs, monkeypatch) -> None:
    """Gate and up of a block are 16 MiB in this step, and as much again lies beside them."""
    stage = engine(packs, 4, 0, KvType.FP32, monkeypatch)
    rows, hidden = [Row(0, 0, CTX, 0)], np.ones((CTX, packs[0].config.d_model), np.float32)
    give_back_freed_memory()
    before = psutil.Process().memory_info().rss
    stage.forward(rows, hidden)
    give_back_freed_memory()  # glibc keeps the blocks that onnxruntime frees, unless it was asked not to
    assert psutil.Process().memory_info().rss - before < 16 * MIB


def test_one_refused_graph_of_several_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load the weights"):
        open_sessions([product_graph(), b"no graph", product_graph()], tmp_path, threads=1)
