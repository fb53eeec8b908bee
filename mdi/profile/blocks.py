"""The real time of one block, and of the head, of a model on this device: random weights of its shape in the real engine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdi.engine.backend import ONNX, Backend
from mdi.engine.protocol import Head, StageShape
from mdi.engine.sampling import SamplingParams, sample
from mdi.errors import InternalError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.packed import Embedding, packed_bytes
from mdi.model.packs import Pack
from mdi.model.quantise import WeightFormat
from mdi.profile.device import spare_bytes, working_set_bytes
from mdi.profile.synthetic import block_packs, embedding_pack, head_pack, scratch_directory, thin
from mdi.profile.timing import repeat

DECODE_POSITION = 128  # in the middle of a short answer
MOST_CTX = 4096  # KV rows that are never written cost nothing: time depends on the position, hardly on the context
EMBEDDING_TOKENS = 256
EMBEDDED = 0  # the token whose embedding is read: the table is too small for any to be better than another
DECODE_BOX_S = 0.5
PREFILL_BOX_S = 1.0
THIN_BOX_S = 0.05
THIN_BLOCKS = (1, 4)
MOST_OVERHEAD = 0.8  # of a stage: that of one block of a toy model is about 0.75, of a real model below 0.06


@dataclass(frozen=True, slots=True)
class LinearTime:
    """What `n` consecutive blocks take: `overhead_s + n * block_s`."""

    overhead_s: float
    block_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.block_s) and self.block_s > 0 and math.isfinite(self.overhead_s) and self.overhead_s >= 0):
            raise InternalError(f"measured {self.block_s} s for a block and {self.overhead_s} s around it")

    def seconds(self, n_blocks: int) -> float:
        return self.overhead_s + n_blocks * self.block_s


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """`decode` is for one token, `prefill` for a chunk of `chunk_tokens` at the start of a sequence."""

    decode: LinearTime
    prefill: LinearTime
    chunk_tokens: int


@dataclass(frozen=True, slots=True)
class HeadTime:
    """Embedding of one token, final norm, head, and the choice of the likeliest token."""

    decode_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.decode_s) and self.decode_s > 0):
            raise InternalError(f"measured {self.decode_s} s for the head")


@dataclass(frozen=True, slots=True)
class _Span:
    slot: int
    position: int
    count: int


@dataclass(frozen=True, slots=True)
class _Work:
    """The steps to time; chunks and positions fit the context."""

    ctx: int
    chunk_tokens: int
    position: int
    threads: int
    kv_type: KvType

    def __post_init__(self) -> None:
        if self.ctx < 1 or self.chunk_tokens < 1 or not 0 <= self.position < self.ctx or self.threads < 1:
            raise InternalError(f"a step like {self} cannot be measured")

    def seconds(
        self, config: ModelConfig, packs: Sequence[Pack], boxes_s: tuple[float, float], backend: Backend
    ) -> tuple[float, float]:
        """(decode, prefill) of a stage of these blocks. `forward` answers with the result itself, so a step's time is all of it."""
        engine = backend.make_engine(config, packs, StageShape(1, self.ctx, self.threads, backend.kv_type(self.kv_type)), 0)
        hidden = np.random.default_rng(0).standard_normal((self.chunk_tokens, config.d_model), dtype=np.float32)

        def step(position: int, count: int, first: int = 0) -> NDArray[np.float32]:
            return engine.forward([_Span(0, position, count)], hidden[first : first + count])

        decode_box_s, prefill_box_s = boxes_s
        prefill = repeat(lambda: step(0, self.chunk_tokens), prefill_box_s)
        # KV up to the position must have been written: the rest would be read from one page of zeros.
        for start in range(self.chunk_tokens, self.position, self.chunk_tokens):
            step(start, min(self.chunk_tokens, self.position - start))
        if not np.isfinite(step(self.position, 1)).all():
            raise InternalError("random weights computed values that are not finite")
        tokens = itertools.cycle(
            range(self.chunk_tokens)
        )  # one token would choose the same experts again, and find them in the cache
        decode = repeat(lambda: step(self.position, 1, next(tokens)), decode_box_s)
        return decode.seconds, prefill.seconds


def ctx_class(ctx: int) -> int:
    """The context that is measured in the place of `ctx`: the next power of two, at most MOST_CTX."""
    return min(MOST_CTX, 1 << (ctx - 1).bit_length()) if ctx > 0 else 0


def measure_blocks(
    config: ModelConfig,
    fmt: WeightFormat,
    *,
    threads: int,
    ctx: int,
    chunk_tokens: int,
    position: int = DECODE_POSITION,
    kv_type: KvType = KvType.FP32,
    backend: Backend = ONNX,
    scratch: Path | None = None,
) -> BlockTimes:
    """Blocks as they run here: as many different ones as exceed the cache, or all of the model's.

    A chunk longer than the context is cut to it; `BlockTimes.chunk_tokens` says what was measured. Takes a few seconds for a 7B
    model, and memory for two copies of at most `working_set_bytes()` plus one block. Raises NoRoom when not even one block can
    be loaded, UserError when the temporary directory is full.
    """
    ctx = ctx_class(ctx)
    work = _Work(ctx, min(chunk_tokens, ctx), min(position, ctx - 1), threads, kv_type)
    block_bytes, _ = packed_bytes(config, fmt)
    wanted = min(config.n_blocks, -(-working_set_bytes(backend) // block_bytes))
    n_blocks = min(wanted, spare_bytes(block_bytes, backend) // block_bytes)
    few, many = THIN_BLOCKS
    thin_config = thin(config, many)
    thin_bytes, _ = packed_bytes(thin_config, fmt)
    with scratch_directory(n_blocks * block_bytes + many * thin_bytes, scratch) as directory:
        stage_s = work.seconds(config, block_packs(directory, config, fmt, n_blocks), (DECODE_BOX_S, PREFILL_BOX_S), backend)
        # The overhead is what remains when blocks have nearly no work: two thin stages tell it within microseconds, where the
        # difference between two stages of real blocks would drown it in their noise.
        packs = block_packs(directory, thin_config, fmt, many)
        thin_s = [work.seconds(thin_config, packs[:n], (THIN_BOX_S, THIN_BOX_S), backend) for n in THIN_BLOCKS]
    backend.release()
    decode, prefill = (
        _linear(stage, n_blocks, (many * thin_few - few * thin_many) / (many - few))
        for stage, thin_few, thin_many in zip(stage_s, *thin_s, strict=True)
    )
    return BlockTimes(decode, prefill, work.chunk_tokens)


def _linear(stage_s: float, n_blocks: int, overhead_s: float) -> LinearTime:
    """Whatever the noise made of the overhead, it is not negative, and leaves the blocks their part."""
    overhead_s = min(max(overhead_s, 0.0), MOST_OVERHEAD * stage_s)
    return LinearTime(overhead_s, (stage_s - overhead_s) / n_blocks)


def measure_head(
    config: ModelConfig, fmt: WeightFormat, threads: int, *, backend: Backend = ONNX, scratch: Path | None = None
) -> HeadTime:
    """The starter's own part of a decode step. Raises as `measure_blocks` does."""
    block_bytes, head_bytes = packed_bytes(config, fmt)
    # Between two heads the blocks' weights pass through the cache; reading as much memory puts the head where it will be.
    flushed_bytes = min(config.n_blocks * block_bytes, working_set_bytes(backend), spare_bytes(head_bytes, backend))
    n_tokens = min(config.vocab_size, EMBEDDING_TOKENS)
    with scratch_directory(head_bytes + 2 * n_tokens * config.d_model, scratch) as directory:
        pack = head_pack(directory, config, fmt)
        embedding = Embedding(embedding_pack(directory, n_tokens, config.d_model), config.embedding_scale)
        seconds = _head_s(backend.make_head(config, pack, threads), embedding, cache_flusher(backend, flushed_bytes))
    backend.release()
    return HeadTime(seconds)


def _head_s(head: Head, embedding: Embedding, flush: Callable[[], object]) -> float:
    greedy = SamplingParams()

    def step() -> int:
        return sample(head.logits(embedding.rows([EMBEDDED]))[0], greedy, 0)

    return repeat(step, DECODE_BOX_S, between=flush).seconds


def cache_flusher(backend: Backend, n_bytes: int) -> Callable[[], object]:
    """A function that reads so much memory that nothing else is left in the cache before it."""
    if backend.accelerator is None:
        return np.ones(n_bytes // 8, np.uint64).max
    from mdi.profile import accelerator

    return accelerator.cache_flusher(backend.torch_device, n_bytes)
