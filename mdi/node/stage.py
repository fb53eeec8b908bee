"""A loaded stage: what a frame must look like, in which order frames come, and what is computed. Synchronous: no network, no clock."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from mdi.engine.protocol import Engine, StageShape
from mdi.engine.thread import BRIEF_S, BRIEF_TOKENS
from mdi.errors import FrameError, PeerError, UserError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.packs import PackRef
from mdi.model.quantise import WeightFormat
from mdi.node.dial import NodeAddress
from mdi.node.meter import Meter
from mdi.plan.plan import BlockRange
from mdi.wire.frame import Frame, FrameLimits, Row, decode, encode
from mdi.wire.ring import RingTarget

# What a session takes beside weights and KV: graph, activations, and the copy of scales that onnxruntime keeps in its own order.
# `make bench`: resident memory of a stage of 8 blocks of the 1B shape, int4.
STAGE_BYTES = 48 << 20
RESIDENT_FACTOR = 1.1


@dataclass(frozen=True, slots=True)
class StageSpec:
    """What a starter asks a node to hold. `packs` are those of `blocks`, in order; `next` None is the last stage."""

    target: RingTarget
    starter_id: str
    model: str
    config: ModelConfig
    fmt: WeightFormat
    blocks: BlockRange
    packs: tuple[PackRef, ...]
    shape: StageShape
    max_tokens: int
    next: NodeAddress | None

    def __post_init__(self) -> None:
        if not len(self.blocks) or self.blocks.stop > self.config.n_blocks or len(self.packs) != len(self.blocks):
            raise UserError(
                f"a stage of {len(self.packs)} packs for blocks {self.blocks.start} to {self.blocks.stop} is not possible"
            )
        if self.shape.ctx > self.config.max_positions:
            raise UserError(f"the model has {self.config.max_positions} positions, fewer than --ctx {self.shape.ctx}")
        _ = self.limits  # what they refuse is refused before anything is loaded

    @property
    def limits(self) -> FrameLimits:
        return FrameLimits(self.config.d_model, self.max_tokens, self.shape.n_slots, self.shape.ctx, "f32")

    @property
    def memory_bytes(self) -> int:
        """What the loaded stage takes when all its slots are full."""
        weights = sum(pack.n_bytes for pack in self.packs)
        kv_bytes = self.shape.kv_bytes(self.config, len(self.blocks))
        return int(RESIDENT_FACTOR * weights) + kv_bytes + self.shape.step_bytes(self.config) + STAGE_BYTES


class LoadedStage:
    """Turns frames into frames. One caller at a time: the engine thread."""

    def __init__(self, spec: StageSpec, engine: Engine) -> None:
        self.spec = spec
        self.steps = 0
        self.busy_s = 0.0
        self.meter = Meter()
        self._engine: Engine | None = engine
        self._limits = spec.limits
        self._tokens_in_slot = [0] * spec.shape.n_slots
        self._written_in_slot = [0] * spec.shape.n_slots  # the most tokens that a slot ever held: their memory stays taken
        self._short_s = math.inf  # how long the last short step took

    @property
    def promised_bytes(self) -> int:
        """Memory that the stage takes when all its slots are full, and does not take yet.

        What a step expands is always among it: how much of that the engine has kept from earlier steps is not known here.
        """
        shape, config = self.spec.shape, self.spec.config
        if shape.kv_type is KvType.HALF:
            return 0  # accelerators take all of KV when they load
        capacity = shape.n_slots * shape.ctx
        unwritten = capacity - sum(self._written_in_slot)
        return shape.kv_bytes(config, len(self.spec.blocks)) * unwritten // capacity + shape.step_bytes(config)

    def is_brief(self, data: bytes) -> bool:
        """Whether `compute` will probably take less than BRIEF_S."""
        return self._short_s < BRIEF_S and len(data) <= self._limits.frame_bytes(BRIEF_TOKENS)

    def compute(self, data: bytes) -> bytes:
        """One step: the frame for the next stage, or on the last stage the rows that the starter wants.

        Raises FrameError for a frame that is damaged, stale or out of order, PeerError after `free`; nothing is computed then.
        """
        started = time.perf_counter()
        frame = decode(data, self._limits)
        self._check_order(frame)
        if (engine := self._engine) is None:
            raise self.over()
        hidden = engine.forward(frame.rows, frame.hidden) if frame.rows else frame.hidden
        self.steps += 1
        for row in frame.rows:
            held = self._tokens_in_slot[row.slot] = row.position + row.count
            self._written_in_slot[row.slot] = max(held, self._written_in_slot[row.slot])
        result = encode(
            frame.emitted(hidden) if self.spec.next is None else Frame(frame.epoch, frame.step, frame.rows, (), hidden)
        )
        took_s = time.perf_counter() - started
        self.busy_s += took_s
        if len(frame.hidden) <= BRIEF_TOKENS:
            self._short_s = took_s
        self.meter.add(frame.rows, took_s)
        return result

    def free(self) -> None:
        """Lets go of the engine, at the end of a step that runs: calls that have failed keep their frames, and so the stage."""
        self._engine = None

    def over(self) -> PeerError:
        """What whoever still uses a freed stage is told."""
        return PeerError(f"session {self.spec.target.session} has ended on this node")

    def _check_order(self, frame: Frame) -> None:
        if frame.epoch != self.spec.target.epoch:
            raise FrameError(
                f"A frame of epoch {frame.epoch} was refused: this stage belongs to epoch {self.spec.target.epoch}."
            )
        if frame.step != self.steps:
            raise FrameError(f"Step {frame.step} was refused: step {self.steps} comes next.")
        for row in frame.rows:
            self._check_row(row)

    def _check_row(self, row: Row) -> None:
        held = self._tokens_in_slot[row.slot]
        if row.position > held:
            raise FrameError(f"A row at position {row.position} of slot {row.slot} was refused: the slot holds {held} tokens.")
