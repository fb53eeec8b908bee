"""The time of one block in decode and prefill, at several batch sizes and context lengths.

A step is matrix products, whose time depends on its rows alone, and attention, whose time also depends on how much KV is read.
The first are measured with real blocks at the start of their sequences; what attention adds further on, with blocks that have the
model's attention and next to nothing else, so that a context can be written within milliseconds and not within minutes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdi.engine.backend import ONNX, Backend
from mdi.engine.protocol import Engine, StageShape
from mdi.errors import InternalError
from mdi.model.config import ModelConfig
from mdi.model.packed import packed_bytes
from mdi.model.quantise import WeightFormat
from mdi.profile.blocks import MOST_CTX, cache_flusher
from mdi.profile.device import spare_bytes, working_set_bytes
from mdi.profile.synthetic import attention_only, block_packs, scratch_directory
from mdi.profile.timing import repeat

BATCHES = (1, 2, 4, 8)  # conversations that decode together
POSITIONS = (512, 2048)  # tokens in KV: a short conversation, and a long one
CHUNKS = (32, 128)  # tokens of one prompt
CTX = 2 * max(POSITIONS)
DECODE_BOX_S = 0.2
PREFILL_BOX_S = 0.3
ATTENTION_BOX_S = 0.08
KV_BUDGET_BYTES = 160 << 20  # written for the largest point; those that would need more are left out
WRITING_BOX_S = 1.5  # for all of that KV; on a slow device the points with the most are left out
PAGE_BYTES = 4096
LEAST_SHARE = 0.02  # of a point's time that its block takes whatever noise made of the overhead


@dataclass(frozen=True, slots=True)
class BlockPoint:
    """One block takes `block_s` for `rows` sequences with `tokens` new tokens each, and `position` tokens already in KV."""

    rows: int
    tokens: int
    position: int
    block_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.block_s) and self.block_s > 0):
            raise InternalError(f"measured {self.block_s} s for a block")


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """`decode` has one token in each row, `prefill` one row of several. Points that do not fit the memory are absent."""

    decode: tuple[BlockPoint, ...]
    prefill: tuple[BlockPoint, ...]


@dataclass(frozen=True, slots=True)
class _Span:
    slot: int
    position: int
    count: int


class _Stage:
    """An engine with random inputs."""

    def __init__(self, engine: Engine, d_model: int) -> None:
        self._engine = engine
        n_tokens = max(*BATCHES, *CHUNKS)
        self._hidden = np.random.default_rng(0).standard_normal((n_tokens, d_model), dtype=np.float32)

    def step(self, rows: int, tokens: int, position: int, first_slot: int = 0) -> NDArray[np.float32]:
        """`rows` sequences with `tokens` new tokens each."""
        spans = [_Span(slot, position, tokens) for slot in range(first_slot, first_slot + rows)]
        return self._engine.forward(spans, self._hidden[: rows * tokens])

    def seconds(self, point: tuple[int, int, int], box_s: float, between: Callable[[], object] | None = None) -> float:
        return repeat(lambda: self.step(*point), box_s, between).seconds


class _WrittenKv:
    """Which pages of KV are real: those never written are all read from one page of zeros, which the cache always holds."""

    def __init__(self, stage: _Stage, stride: int) -> None:
        self._stage = stage
        self._stride = stride
        self._until = [0] * max(BATCHES)  # by slot
        self._left_s = WRITING_BOX_S

    def reach(self, rows: int, position: int) -> bool:
        """Writes a token on every page up to there in the first `rows` slots. False when the time for that is used up."""
        for first, last in _runs(self._until[:rows]):
            for at in range(self._until[first], position, self._stride):
                if self._left_s <= 0:
                    return False
                started_s = time.perf_counter()
                self._stage.step(last - first, 1, at, first)
                self._left_s -= time.perf_counter() - started_s
                self._until[first:last] = [at + self._stride] * (last - first)
        return True


def _runs(values: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open ranges of neighbours that are equal."""
    edges = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    return list(itertools.pairwise(edges))


def measure_grid(
    config: ModelConfig,
    fmt: WeightFormat,
    overhead_s: float,
    *,
    threads: int,
    backend: Backend = ONNX,
    scratch: Path | None = None,
) -> BlockGrid:
    """`overhead_s` is that of a stage, from `measure_blocks`. Takes some 4 seconds. Raises as `measure_blocks` does."""
    linear, n_blocks = _linear_s(config, fmt, threads, backend, scratch)
    attention = _attention_s(config, fmt, threads, backend, scratch)
    backend.release()

    def point(rows: int, tokens: int, position: int, extra_s: float) -> BlockPoint:
        stage_s = linear[rows, tokens]
        alone_s = max(stage_s - overhead_s, LEAST_SHARE * stage_s) / n_blocks
        return BlockPoint(rows, tokens, position, alone_s + extra_s)

    shapes = [(rows, 1) for rows in BATCHES], [(1, tokens) for tokens in CHUNKS]
    decode, prefill = (
        tuple(
            point(rows, tokens, position, attention[rows, tokens, position])
            for rows, tokens in each
            for position in (0, *POSITIONS)
            if (rows, tokens, position) in attention
        )
        for each in shapes
    )
    return BlockGrid(decode, prefill)


def _linear_s(
    config: ModelConfig, fmt: WeightFormat, threads: int, backend: Backend, scratch: Path | None
) -> tuple[dict[tuple[int, int], float], int]:
    """(rows, tokens) -> seconds of a stage at the start of its sequences, and of how many blocks it is."""
    block_bytes, _ = packed_bytes(config, fmt)
    wanted = min(config.n_blocks, -(-working_set_bytes(backend) // block_bytes))
    n_blocks = min(wanted, spare_bytes(block_bytes, backend) // block_bytes)
    shape = StageShape(n_slots=max(BATCHES), ctx=min(CTX, MOST_CTX), threads=threads)
    with scratch_directory(n_blocks * block_bytes, scratch) as directory:
        stage = _Stage(backend.make_engine(config, block_packs(directory, config, fmt, n_blocks), shape, 0), config.d_model)
        found = {(rows, 1): stage.seconds((rows, 1, 0), DECODE_BOX_S) for rows in BATCHES}
        found |= {(1, tokens): stage.seconds((1, tokens, 0), PREFILL_BOX_S) for tokens in CHUNKS}
    return found, n_blocks


def _attention_s(
    config: ModelConfig, fmt: WeightFormat, threads: int, backend: Backend, scratch: Path | None
) -> dict[tuple[int, int, int], float]:
    """(rows, tokens, position) -> what attention adds to one block there, against position 0."""
    per_token = StageShape(1, 1, 1).kv_bytes(config, 1)
    budget = min(KV_BUDGET_BYTES, spare_bytes(per_token, backend))
    config = attention_only(config, 1)
    shape = StageShape(n_slots=max(BATCHES), ctx=CTX, threads=threads)
    flush = cache_flusher(backend, min(working_set_bytes(backend), spare_bytes(per_token, backend)))
    found: dict[tuple[int, int, int], float] = {}
    with scratch_directory(packed_bytes(config, fmt)[0], scratch) as directory:
        stage = _Stage(backend.make_engine(config, block_packs(directory, config, fmt, 1), shape, 0), config.d_model)
        written = _WrittenKv(stage, max(1, PAGE_BYTES // (4 * config.head_dim)))
        base: dict[tuple[int, int], float] = {}
        for rows, tokens, position in _points(per_token, budget):
            if (rows, tokens) not in base:
                base[rows, tokens] = stage.seconds((rows, tokens, 0), ATTENTION_BOX_S, flush)
                found[rows, tokens, 0] = 0.0
            if written.reach(rows, position):
                stage_s = stage.seconds((rows, tokens, position), ATTENTION_BOX_S, flush)
                found[rows, tokens, position] = max(0.0, stage_s - base[rows, tokens])
    return found


def _points(per_token: int, budget: int) -> Sequence[tuple[int, int, int]]:
    """All that fit the budget, those with the least KV first; the shortest position of one row is always there."""
    shapes = [(1, 1), *((1, tokens) for tokens in CHUNKS), *((rows, 1) for rows in BATCHES if rows > 1)]
    return [
        (rows, tokens, position)
        for rows, tokens in shapes
        for position in POSITIONS
        if rows * position * per_token <= budget or (rows == 1 and position == POSITIONS[0])
    ]


def reachable(grid: BlockGrid, max_positions: int) -> BlockGrid:
    """Without the points that lie beyond the model's context."""

    def within(points: tuple[BlockPoint, ...]) -> tuple[BlockPoint, ...]:
        return tuple(point for point in points if point.position + point.tokens <= max_positions)

    return BlockGrid(within(grid.decode), within(grid.prefill))
