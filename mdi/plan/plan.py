"""The planner's answer: which blocks on which nodes in which order, and what that should give."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from mdi.errors import InternalError


class Objective(StrEnum):
    LATENCY = "latency"  # the shortest step of one conversation
    THROUGHPUT = "throughput"  # the most tokens a second over enough conversations to keep every node busy
    MIXED = (
        "mixed"  # the least time per token where a share of the tokens comes while every node is busy, the others one by one
    )

    def busy_share(self, mixed_share: float) -> float:
        """The share of tokens that are generated while every node is busy; `mixed_share` of a mixed objective."""
        return {Objective.LATENCY: 0.0, Objective.THROUGHPUT: 1.0, Objective.MIXED: mixed_share}[self]


@dataclass(frozen=True, slots=True)
class BlockRange:
    """Blocks `start` to `stop - 1`."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise InternalError(f"not a range of blocks: {self.start} to {self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Stage:
    """`bytes` is all that the node needs for this plan; on the starter that includes embedding and head."""

    node_id: str
    name: str
    blocks: BlockRange
    bytes: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """Times of a ring. Stage `i` is followed by hop `i`, the last one back to the starter; a starter alone has no hops.

    The starter's stage time includes embedding, head and sampling. Decode times are for the load that was planned for: steps of `rows` rows
    of as many conversations; prefill times for a whole chunk at the start of a prompt.
    """

    decode_step_s: float
    ttft_s: float
    bottleneck: str  # the slowest stage or hop of a decode step, as in "it is bounded by ..."
    bottleneck_s: float
    stage_decode_s: tuple[float, ...]
    hop_decode_s: tuple[float, ...]
    stage_prefill_s: tuple[float, ...]
    hop_prefill_s: tuple[float, ...]
    rows: int = 1

    @property
    def decode_tokens_per_s(self) -> float:
        """For one conversation."""
        return 1 / self.decode_step_s

    @property
    def throughput_tokens_per_s(self) -> float:
        """With at least `conversations_to_fill` conversations."""
        return self.rows / self.bottleneck_s

    @property
    def conversations_to_fill(self) -> int:
        """How many conversations keep the slowest stage or hop always busy."""
        steps = math.ceil(self.decode_step_s / self.bottleneck_s * (1 - 1e-12))  # equal times must not round up
        return self.rows * steps


@dataclass(frozen=True, slots=True)
class Plan:
    """`stages[0]` is the starter's and may be empty; every other stage has blocks.

    `objective` is None for a split by rule or by hand; so is `bound_s`. `bound_s` is what no plan can beat (see `value_s`); equal to this
    plan's own value where that is proven to be the best. `busy_share` is that of the objective.
    """

    objective: Objective | None
    n_blocks: int
    stages: tuple[Stage, ...]
    prediction: Prediction
    bound_s: float | None = None
    busy_share: float = 0.0

    def __post_init__(self) -> None:
        self.check_integrity()

    @property
    def value_s(self) -> float:
        """What was minimised: mean seconds per token, when `busy_share` of the tokens come while every node is busy."""
        return (1 - self.busy_share) * self.prediction.decode_step_s + self.busy_share * self.prediction.bottleneck_s

    @property
    def gap(self) -> float | None:
        """How much longer than the bound this plan takes, as a share of the bound: 0 is proven to be the best. None: not known."""
        if self.bound_s is None:
            return None
        gap = self.value_s / self.bound_s - 1 if self.bound_s > 0 else float(self.value_s > 0)
        return gap if gap > 1e-9 else 0.0  # sums of the same times in another order differ by less

    def check_integrity(self) -> None:
        """Every block once, in order, the starter's first; one stage for each node; times for all. InternalError otherwise."""
        if not self.stages:
            raise InternalError("a plan without stages")
        done = 0
        for position, stage in enumerate(self.stages):
            if stage.blocks.start != done:
                raise InternalError(f"the stage of {stage.name} starts at block {stage.blocks.start}, not {done}")
            if position > 0 and not len(stage.blocks):
                raise InternalError(f"{stage.name} is in the ring without a block")
            done = stage.blocks.stop
        if done != self.n_blocks:
            raise InternalError(f"the stages hold {done} blocks of {self.n_blocks}")
        if len({stage.node_id for stage in self.stages}) < len(self.stages):
            raise InternalError("a node has two stages")
        n_stages, n_hops = len(self.stages), len(self.stages) if len(self.stages) > 1 else 0
        times = self.prediction
        if {len(times.stage_decode_s), len(times.stage_prefill_s)} != {n_stages}:
            raise InternalError("the prediction is for another number of stages")
        if {len(times.hop_decode_s), len(times.hop_prefill_s)} != {n_hops}:
            raise InternalError("the prediction is for another number of hops")

    @property
    def node_ids(self) -> tuple[str, ...]:
        """In ring order, the starter first."""
        return tuple(stage.node_id for stage in self.stages)

    @property
    def counts(self) -> tuple[int, ...]:
        """Blocks per stage, in ring order."""
        return tuple(len(stage.blocks) for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Only dicts, lists, strings, numbers and None."""
        times = asdict(self.prediction)
        return {
            "objective": self.objective.value if self.objective else None,
            "busy_share": self.busy_share if self.objective else None,
            "bound_s": self.bound_s,
            "gap": self.gap,
            "n_blocks": self.n_blocks,
            "stages": [
                {
                    "node": stage.node_id,
                    "name": stage.name,
                    "start": stage.blocks.start,
                    "stop": stage.blocks.stop,
                    "bytes": stage.bytes,
                }
                for stage in self.stages
            ],
            "prediction": {
                **{key: list(value) if isinstance(value, tuple) else value for key, value in times.items()},
                "decode_tokens_per_s": self.prediction.decode_tokens_per_s,
                "throughput_tokens_per_s": self.prediction.throughput_tokens_per_s,
                "conversations_to_fill": self.prediction.conversations_to_fill,
            },
        }
