from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mdi.engine.backend import choose_backend
from mdi.errors import InternalError
from mdi.model.checkpoint import read_config
from mdi.model.config import ModelConfig
from mdi.model.quantise import WeightFormat
from mdi.profile import grid as grid_module
from mdi.profile.cache import ProfileCache
from mdi.profile.grid import BATCHES, CHUNKS, POSITIONS, BlockGrid, BlockPoint, _runs, measure_grid, reachable
from mdi.profile.synthetic import attention_only
from mdi.profile.whole import Subject, measure_whole
from tests.checkpoints import make_checkpoint

INT4 = WeightFormat(4, 128)
ALL = (0, *POSITIONS)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine leaves no point out."""
    monkeypatch.setattr(grid_module, "WRITING_BOX_S", 120.0)


@pytest.fixture
def wide(tiny: ModelConfig) -> ModelConfig:
    """Attention that costs something: 8 KiB of KV per token."""
    return replace(tiny, n_heads=16, n_kv_heads=16, head_dim=64, max_positions=4096)


def by_shape(grid: BlockGrid) -> dict[tuple[int, int, int], float]:
    return {(p.rows, p.tokens, p.position): p.block_s for p in (*grid.decode, *grid.prefill)}


def test_every_batch_chunk_and_position_is_measured(wide: ModelConfig, scratch: Path) -> None:
    grid = measure_grid(wide, INT4, 0.0, threads=1, scratch=scratch)
    assert {(p.rows, p.position) for p in grid.decode} == {(rows, at) for rows in BATCHES for at in ALL}
    assert {(p.tokens, p.position) for p in grid.prefill} == {(tokens, at) for tokens in CHUNKS for at in ALL}
    times = by_shape(grid)
    assert times[8, 1, 2048] > times[1, 1, 2048] > times[1, 1, 0]  # about 8 and 20 times
    assert times[1, 128, 2048] > times[1, 128, 0]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("kind", ["gemma3", "mixtral", "qwen3"])
def test_models_of_every_kind_have_a_grid(kind: str, scratch: Path, tmp_path: Path) -> None:
    config = read_config(make_checkpoint(tmp_path / "model", kind))
    grid = measure_grid(config, WeightFormat(4, 32), 0.0, threads=1, scratch=scratch)
    assert len(grid.decode) == len(BATCHES) * len(ALL)


def test_torch_has_a_grid_too(tiny: ModelConfig, scratch: Path) -> None:
    grid = measure_grid(tiny, INT4, 0.0, threads=1, backend=choose_backend("torch-cpu"), scratch=scratch)
    assert len(grid.decode) == len(BATCHES) * len(ALL)


def test_points_that_do_not_fit_the_memory_or_the_time_are_left_out(
    wide: ModelConfig, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_token = 2 * 16 * 64 * 4
    monkeypatch.setattr(grid_module, "KV_BUDGET_BYTES", 1024 * per_token)
    found = {(p.rows, p.position) for p in measure_grid(wide, INT4, 0.0, threads=1, scratch=scratch).decode}
    assert found == {(1, 0), (1, 512), (2, 0), (2, 512)}
    monkeypatch.setattr(grid_module, "WRITING_BOX_S", 0.0)
    found = {(p.rows, p.position) for p in measure_grid(wide, INT4, 0.0, threads=1, scratch=scratch).decode}
    assert found == {(1, 0), (2, 0)}


def test_the_overhead_of_a_stage_is_not_the_blocks(tiny: ModelConfig, scratch: Path) -> None:
    grid = measure_grid(tiny, INT4, 1e3, threads=1, scratch=scratch)  # more than any stage takes
    assert all(0 < point.block_s < 1 for point in grid.decode)


def test_attention_alone_keeps_the_heads_and_what_each_block_sees(tmp_path: Path) -> None:
    config = read_config(make_checkpoint(tmp_path / "model", "gemma3"))
    alone = attention_only(config, 1)
    assert (alone.n_heads, alone.n_kv_heads, alone.head_dim) == (config.n_heads, config.n_kv_heads, config.head_dim)
    assert alone.windowed_blocks == tuple(block for block in config.windowed_blocks if block < 1)
    assert alone.d_ffn <= 32


def test_points_beyond_the_models_context_are_not_shown() -> None:
    point = BlockPoint(1, 1, 0, 1.0)
    grid = BlockGrid((point, replace(point, position=512)), (replace(point, tokens=128),))
    assert reachable(grid, 128) == BlockGrid((point,), (replace(point, tokens=128),))
    assert reachable(grid, 513) == grid


def test_neighbours_that_are_equal_are_one_run() -> None:
    assert _runs([5, 5, 0, 0, 5]) == [(0, 2), (2, 4), (4, 5)]
    assert _runs([1]) == [(0, 1)]


@pytest.mark.parametrize("block_s", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_refused(block_s: float) -> None:
    with pytest.raises(InternalError):
        BlockPoint(1, 1, 0, block_s)


def test_the_whole_profile_is_measured_once(tiny: ModelConfig, tmp_path: Path) -> None:
    subject = Subject("tiny", tiny, INT4, ctx=128, chunk_tokens=32)

    def whole(refresh: bool = False, max_memory: int | None = 1 << 20) -> object:
        backend = choose_backend("cpu")
        return measure_whole(tmp_path, subject, 1, backend, max_memory=max_memory, refresh=refresh)

    first, again = whole(), whole()
    assert (first.measured, again.measured) == (True, False)
    for name in ("device", "blocks", "head", "grid", "load"):
        assert getattr(again, name) == getattr(first, name)
    assert again.disk.speed == first.disk.speed
    assert first.memory.offered_bytes <= 1 << 20 < first.memory.available_bytes
    renewed = whole(refresh=True)
    assert renewed.measured
    assert renewed.grid != first.grid
    shown = first.to_json()
    assert shown["format"] == {"bits": 4, "block": 128}
    assert {point["position"] for point in shown["grid"]["decode"]} == {0}  # the model's context is 256
    assert shown["load"]["loaded"] is first.load.loaded


def test_a_damaged_grid_is_measured_again(tiny: ModelConfig, tmp_path: Path) -> None:
    cache = ProfileCache(tmp_path)
    first = cache.grid(tiny, INT4, 0.0, threads=1)
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text().replace('"rows": 1', '"rows": "1"').replace('"block_s"', '"block_m"'))
    second = cache.grid(tiny, INT4, 0.0, threads=1)
    assert second != first
    assert cache.grid(tiny, INT4, 0.0, threads=1) == second
