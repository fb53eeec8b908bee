from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from mdi.engine.protocol import StageShape
from mdi.engine.thread import BRIEF_S, BRIEF_TOKENS
from mdi.errors import FrameError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.packs import PackRef
from mdi.model.quantise import WeightFormat
from mdi.node import stage as stage_module
from mdi.node.dial import NodeAddress
from mdi.node.stage import LoadedStage, StageSpec
from mdi.plan.plan import BlockRange
from mdi.wire.frame import Frame, Row, decode, encode
from mdi.wire.ring import RingTarget
from tests.checkpoints import TINY


class AddOne:
    """The smallest engine: what a stage does around it is what is tested here."""

    weight_bytes = kv_bytes = 0

    def forward(self, spans: object, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        return hidden + 1


CONFIG = ModelConfig.from_hf(TINY | {"architectures": ["LlamaForCausalLM"]})
SPEC = StageSpec(
    target=RingTarget("s", 3),
    starter_id="starter",
    model="tiny",
    config=CONFIG,
    fmt=WeightFormat(32),
    blocks=BlockRange(1, 2),
    packs=(PackRef("0" * 64, 10),),
    shape=StageShape(n_slots=2, ctx=32, threads=1),
    max_tokens=16,
    next=None,
)
HIDDEN = np.arange(5 * CONFIG.d_model, dtype=np.float32).reshape(5, -1)


def frame(step: int = 0, epoch: int = 3, rows: tuple[Row, ...] = (Row(0, 0, 3, 1), Row(1, 0, 2, 0))) -> bytes:
    return encode(Frame(epoch, step, rows, (), HIDDEN[: sum(row.count for row in rows)]))


def test_the_last_stage_sends_back_only_the_rows_that_are_wanted() -> None:
    result = decode(LoadedStage(SPEC, AddOne()).compute(frame()), SPEC.limits)
    assert result.rows == (Row(0, 2, 1, 1),)
    np.testing.assert_array_equal(result.hidden, HIDDEN[2:3] + 1)


def test_a_stage_in_the_middle_passes_everything_on() -> None:
    spec = replace(SPEC, next=NodeAddress("id", "next", ("127.0.0.1",), 1))
    result = decode(LoadedStage(spec, AddOne()).compute(frame()), SPEC.limits)
    assert result.rows == (Row(0, 0, 3, 1), Row(1, 0, 2, 0))
    np.testing.assert_array_equal(result.hidden, HIDDEN + 1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"epoch": 2}, "epoch 2"),
        ({"epoch": 4}, "epoch 4"),
        ({"step": 1}, "Step 1"),
        ({"rows": (Row(0, 5, 1, 1),)}, "position 5 of slot 0"),
    ],
)
def test_stale_skipped_and_gapped_frames_are_refused_and_compute_nothing(wrong: dict[str, object], named: str) -> None:
    stage = LoadedStage(SPEC, AddOne())
    with pytest.raises(FrameError, match=named):
        stage.compute(frame(**wrong))
    assert stage.steps == 0
    stage.compute(frame())


def test_a_repeated_step_is_refused() -> None:
    stage = LoadedStage(SPEC, AddOne())
    stage.compute(frame(step=0))
    with pytest.raises(FrameError, match="step 1 comes next"):
        stage.compute(frame(step=0))


def test_a_slot_may_go_back_but_not_forward() -> None:
    stage = LoadedStage(SPEC, AddOne())
    stage.compute(frame())
    stage.compute(frame(step=1, rows=(Row(0, 1, 1, 1),)))
    with pytest.raises(FrameError, match="position 3"):
        stage.compute(frame(step=2, rows=(Row(0, 3, 1, 1),)))


def test_only_short_steps_of_a_fast_stage_are_brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only these may keep a node's loop from its network."""
    clock_s = [0.0]
    monkeypatch.setattr(stage_module.time, "perf_counter", lambda: clock_s[0])

    class Timed(AddOne):
        took_s = BRIEF_S / 2

        def forward(self, spans: object, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
            clock_s[0] += self.took_s
            return hidden + 1

    engine = Timed()
    stage = LoadedStage(SPEC, engine)
    short = frame(0, rows=(Row(0, 0, 1, 1),))
    long = encode(Frame(3, 1, (Row(0, 1, BRIEF_TOKENS + 1, 1),), (), np.zeros((BRIEF_TOKENS + 1, CONFIG.d_model), np.float32)))
    assert not stage.is_brief(short)  # nobody knows yet
    stage.compute(short)
    assert stage.is_brief(short)
    assert not stage.is_brief(long)
    engine.took_s = 5 * BRIEF_S
    stage.compute(long)
    assert stage.is_brief(short)  # that long ones take longer says nothing of short ones
    stage.compute(frame(2, rows=(Row(0, 1, 1, 1),)))
    assert not stage.is_brief(short)


def test_kv_is_counted_in_its_own_type_and_8_bits_with_what_a_step_expands() -> None:
    values = 2 * 2 * 32 * CONFIG.n_kv_heads * CONFIG.head_dim  # keys and values, slots, tokens
    shapes = [replace(SPEC.shape, kv_type=kv_type) for kv_type in (KvType.FP32, KvType.HALF, KvType.INT8)]
    fp32, half, int8 = (replace(SPEC, shape=shape).memory_bytes for shape in shapes)
    assert fp32 - half == 2 * values
    assert half - int8 == values - shapes[2].step_bytes(CONFIG)
    assert shapes[2].step_bytes(CONFIG) == 2 * 4 * values  # in fp32, before and after the kernel
