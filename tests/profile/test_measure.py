from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest

from mdi.engine.backend import choose_backend
from mdi.engine.onnx_engine import OnnxEngine
from mdi.engine.protocol import StageShape
from mdi.errors import InternalError, ModelError, NoRoom, UserError
from mdi.model.checkpoint import read_config
from mdi.model.config import ModelConfig
from mdi.model.packed import packed_bytes
from mdi.model.quantise import WeightFormat
from mdi.profile import device, synthetic
from mdi.profile.blocks import DECODE_POSITION, LinearTime, _linear, _Span, ctx_class, measure_blocks, measure_head
from mdi.profile.device import DeviceProfile, measure_device, spare_bytes, working_set_bytes
from mdi.profile.memory import available_bytes
from mdi.profile.timing import LEAST_SAMPLES, MOST_SAMPLES, repeat
from tests.checkpoints import make_checkpoint

INT4, INT8, FP32 = WeightFormat(4, 128), WeightFormat(8, 32), WeightFormat(32)


@pytest.mark.parametrize("fmt", [INT4, INT8, FP32])
def test_a_tiny_model_is_measured_and_leaves_nothing_behind(tiny: ModelConfig, fmt: WeightFormat, scratch: Path) -> None:
    times = measure_blocks(tiny, fmt, threads=1, ctx=256, chunk_tokens=32, scratch=scratch)
    head = measure_head(tiny, fmt, 1, scratch=scratch)
    assert times.chunk_tokens == 32
    assert 0 < times.decode.seconds(1) < times.decode.seconds(3) < 10
    assert 0 < times.prefill.block_s < 10
    assert 0 < head.decode_s < 10
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("fmt", [INT4, FP32])
def test_torch_is_measured_with_its_own_engine(tiny: ModelConfig, fmt: WeightFormat, scratch: Path) -> None:
    backend = choose_backend("torch-cpu")
    times = measure_blocks(tiny, fmt, threads=1, ctx=256, chunk_tokens=32, backend=backend, scratch=scratch)
    head = measure_head(tiny, fmt, 1, backend=backend, scratch=scratch)
    assert 0 < times.decode.seconds(1) < times.decode.seconds(3) < 10
    assert 0 < times.prefill.block_s < 10
    assert 0 < head.decode_s < 10
    assert list(scratch.iterdir()) == []


def test_the_bounds_of_a_torch_device_are_measured() -> None:
    profile = measure_device(1, backend=choose_backend("torch-cpu"))
    assert 1e-4 < profile.tflops < 100
    assert 1e7 < profile.read_bytes_per_s < 1e13


def test_a_chunk_of_a_larger_model_costs_more_than_one_token(tiny: ModelConfig, scratch: Path) -> None:
    config = replace(tiny, d_model=512, d_ffn=1024)
    times = measure_blocks(config, INT4, threads=1, ctx=256, chunk_tokens=128, scratch=scratch)
    assert times.prefill.block_s > 2 * times.decode.block_s  # about 60 times


def test_a_wider_block_costs_more(tiny: ModelConfig, scratch: Path) -> None:
    def block_s(d_ffn: int) -> float:
        config = replace(tiny, d_ffn=d_ffn)
        return measure_blocks(config, INT4, threads=1, ctx=256, chunk_tokens=64, scratch=scratch).prefill.block_s

    assert block_s(16384) > 2 * block_s(160)  # about 50 times


def test_chunk_and_position_are_cut_to_a_short_context(tiny: ModelConfig, scratch: Path) -> None:
    times = measure_blocks(tiny, INT4, threads=1, ctx=16, chunk_tokens=128, position=DECODE_POSITION, scratch=scratch)
    assert times.chunk_tokens == 16


def test_contexts_share_a_class_up_to_a_bound() -> None:
    assert [ctx_class(ctx) for ctx in (0, 1, 16, 17, 2048, 4000, 131072)] == [0, 1, 16, 32, 2048, 4096, 4096]


@pytest.mark.parametrize(("stage_s", "overhead_s"), [(1.0, -0.3), (1.0, 0.0), (1.0, 0.25), (1.0, 7.0)])
def test_noise_never_makes_a_part_negative_and_the_sum_stays_true(stage_s: float, overhead_s: float) -> None:
    time = _linear(stage_s, 4, overhead_s)
    assert time.overhead_s >= 0
    assert time.block_s > 0
    assert time.seconds(4) == pytest.approx(stage_s)


@pytest.mark.parametrize(("overhead_s", "block_s"), [(-1.0, 1.0), (0.0, 0.0), (0.0, float("nan")), (float("inf"), 1.0)])
def test_impossible_times_are_refused(overhead_s: float, block_s: float) -> None:
    with pytest.raises(InternalError):
        LinearTime(overhead_s, block_s)


@pytest.mark.parametrize("fmt", [INT4, INT8, FP32])
def test_synthetic_packs_are_what_the_plan_counts_and_stay_finite(tiny: ModelConfig, fmt: WeightFormat, tmp_path: Path) -> None:
    packs = synthetic.block_packs(tmp_path, tiny, fmt, 24)
    block_bytes, _ = packed_bytes(tiny, fmt)
    assert sum(tensor.n_bytes for tensor in packs[0].tensors.values()) == block_bytes
    hidden = np.random.default_rng(1).standard_normal((8, tiny.d_model), dtype=np.float32)
    out = OnnxEngine(tiny, packs, StageShape(1, 16, 1), 0).forward([_Span(0, 0, 8)], hidden)
    assert np.isfinite(out).all()
    assert 0.1 < float(out.std()) < 100


@pytest.mark.parametrize("fmt", [INT4, FP32])
def test_no_two_synthetic_blocks_are_equal(tiny: ModelConfig, fmt: WeightFormat, tmp_path: Path) -> None:
    """onnxruntime would keep their weights once, and measure a cache in the place of the memory."""
    packs = synthetic.block_packs(tmp_path, tiny, fmt, 8)
    assert len({pack.path.read_bytes() for pack in packs}) == 8


@pytest.mark.parametrize("fmt", [WeightFormat(4, 32), FP32])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "phi3-partial", "gemma3", "mixtral", "qwen3moe"])
def test_blocks_of_every_kind_are_measured_as_they_are_packed(kind: str, fmt: WeightFormat, scratch: Path) -> None:
    config = read_config(make_checkpoint(scratch / "model", kind))
    packs = synthetic.block_packs(scratch, config, fmt, config.n_blocks)
    written = [sum(tensor.n_bytes for tensor in pack.tensors.values()) for pack in packs]
    assert max(written) == packed_bytes(config, fmt)[0]
    for pack in packs:
        pack.path.unlink()
    rmtree(scratch / "model")
    times = measure_blocks(config, fmt, threads=1, ctx=64, chunk_tokens=16, scratch=scratch)
    assert 0 < times.decode.block_s < 10
    assert list(scratch.iterdir()) == []


def test_temporary_files_are_gone_after_an_error(tiny: ModelConfig, scratch: Path) -> None:
    broken = replace(tiny)
    object.__setattr__(broken, "norm_eps", float("nan"))  # a config refuses it; here it fails late, with the weights written
    with pytest.raises(ModelError):  # from onnxruntime
        measure_blocks(broken, INT4, threads=1, ctx=64, chunk_tokens=16, scratch=scratch)
    with pytest.raises(InternalError, match="finite"):
        measure_head(broken, INT4, 1, scratch=scratch)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"ctx": 0}, {"chunk_tokens": 0}, {"position": -1}])
def test_an_impossible_step_is_refused_before_anything_is_written(
    tiny: ModelConfig, wrong: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(InternalError, match="cannot be measured"):
        measure_blocks(tiny, INT4, **({"threads": 1, "ctx": 64, "chunk_tokens": 16} | wrong), scratch=tmp_path / "absent")


def test_a_missing_temporary_directory_is_a_sentence(tiny: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        measure_head(tiny, INT4, 1, scratch=tmp_path / "absent")
    assert "TMPDIR" in (refused.value.hint or "")


def test_what_a_killed_process_left_is_cleared_away(scratch: Path) -> None:
    old, recent, other = scratch / f"{synthetic.PREFIX}old", scratch / f"{synthetic.PREFIX}recent", scratch / "other"
    for directory in (old, recent, other):
        directory.mkdir()
        (directory / "block-0").touch()
    for directory in (old, other):
        os.utime(directory, (0, 0))
    with synthetic.scratch_directory(1, scratch) as directory:
        assert {directory, recent, other} == set(scratch.iterdir())


def test_a_full_disk_is_noticed_before_writing(scratch: Path) -> None:
    with pytest.raises(UserError), synthetic.scratch_directory(1 << 60, scratch):
        pytest.fail("no disk has that much room")
    assert list(scratch.iterdir()) == []


def test_a_block_that_memory_cannot_hold_is_refused(tiny: ModelConfig, scratch: Path) -> None:
    giant = replace(tiny, d_model=1 << 17, d_ffn=1 << 17)
    with pytest.raises(NoRoom):
        measure_blocks(giant, FP32, threads=1, ctx=64, chunk_tokens=16, scratch=scratch)


def test_weights_to_measure_with_leave_half_of_the_memory() -> None:
    assert spare_bytes(1) * device.COPIES <= available_bytes() * 0.6  # memory moves while the test runs
    assert working_set_bytes() >= device.WORKING_SET_BYTES


def test_the_device_is_measured_with_its_spread(scratch: Path) -> None:
    profile = measure_device(1, scratch=scratch)
    assert profile.threads == 1
    assert 1e-4 < profile.tflops < 100
    assert 1e7 < profile.read_bytes_per_s < 1e13
    assert profile.tflops_spread >= 0
    assert profile.read_spread >= 0
    assert list(scratch.iterdir()) == []


def test_an_impossible_profile_is_refused() -> None:
    with pytest.raises(InternalError):
        DeviceProfile(float("nan"), 1e9, 1, 0.0, 0.0)


def test_a_call_longer_than_its_box_runs_once() -> None:
    calls: list[int] = []
    timing = repeat(lambda: calls.append(1), box_s=0.0)
    assert (len(calls), timing.n_samples, timing.spread) == (1, 1, 0.0)


def test_short_calls_are_bounded_in_number_and_prepared_each_time() -> None:
    events: list[str] = []
    timing = repeat(lambda: events.append("call"), box_s=5.0, between=lambda: events.append("between"))
    assert LEAST_SAMPLES <= timing.n_samples <= MOST_SAMPLES
    assert events == ["between", "call"] * (timing.n_samples + 1)
