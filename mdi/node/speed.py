"""How fast a stage's last steps were, beside what this device measured of the model when it had nothing else to do. Pure."""

from __future__ import annotations

from mdi.node.stage import LoadedStage
from mdi.plan.costs import ModelCost, NodeCost, Problem, StageTime, StarterCost
from mdi.plan.live import factor_of
from mdi.profile.attention import ContextTime
from mdi.profile.blocks import BlockTimes


def speed_of(stage: LoadedStage, times: BlockTimes | None) -> float | None:
    """1 is as predicted, 0.5 half as fast, in decoding; None when nothing was measured, or nothing computed yet.

    The steps are the stage's last ones, however long ago.
    """
    if times is None:
        return None
    factor = factor_of(_alone(stage, times), 0, len(stage.spec.blocks), stage.meter.recent).decode
    return None if factor is None else 1 / factor


def _alone(stage: LoadedStage, times: BlockTimes) -> Problem:
    """A problem of this device alone, whose predictions are those of any plan that it is part of."""
    spec, config, shape = stage.spec, stage.spec.config, stage.spec.shape
    kv_bytes = shape.kv_bytes(config, 1) // (shape.n_slots * shape.ctx)
    more = ContextTime.of(
        config,
        spec.fmt,
        kv_bytes_per_token=kv_bytes,
        decode_block_s=times.decode.block_s,
        prefill_block_s=times.prefill.block_s,
        chunk_tokens=times.chunk_tokens,
    )
    node = NodeCost(
        "this",
        "this device",
        0,
        StageTime(times.decode.overhead_s, times.decode.block_s),
        StageTime(times.prefill.overhead_s, times.prefill.block_s),
        decode_kv_s=more.decode_s,
        prefill_kv_s=more.prefill_s,
    )
    windowed = len(config.windowed_blocks) / config.n_blocks
    model = ModelCost(
        config.n_blocks,
        block_bytes=1,
        kv_bytes_per_token=0,
        ctx=shape.ctx,
        slots=1,
        stage_bytes=0,
        chunk_tokens=times.chunk_tokens,
        window_tokens=config.sliding_window if windowed else None,
        windowed_share=windowed,
    )
    return Problem(model, (node,), StarterCost(0.0, 0.0, 0), {})
