"""This device's measurements, made in the engine thread when it is free and remembered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from mdi.engine.backend import Backend
from mdi.engine.thread import EngineThread
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.quantise import WeightFormat
from mdi.node.stage import StageSpec
from mdi.profile.blocks import BlockTimes, HeadTime
from mdi.profile.cache import ProfileCache
from mdi.profile.cold import Chill
from mdi.profile.device import DeviceProfile
from mdi.profile.memory import give_back_freed_memory
from mdi.wire.frame import Frame, FrameLimits, Row, decode, encode

T = TypeVar("T")

HAND_OVERS = 15
# Both threads sleep between the steps of real decoding: a hot loop would flatter by half. Never equally long, since pauses that are a
# multiple of something that comes again and again, such as a clock tick or a slice of processor time, would meet it always or never.
HAND_OVER_PAUSES_S = (0.004, 0.008)
CHILL_S = 0.05


class Measurer:
    """Asks the profile cache, in the thread that computes: a measurement beside a running step would measure neither."""

    def __init__(self, directory: Path, engine: EngineThread, threads: int, backend: Backend) -> None:
        self._cache = ProfileCache(directory, backend=backend)
        self._engine = engine
        self._threads = threads
        self._hand_over_s: float | None = None

    async def device(self, *, refresh: bool = False) -> DeviceProfile:
        return await self._measured(lambda: self._cache.device(self._threads, refresh=refresh))

    async def blocks(
        self,
        config: ModelConfig,
        fmt: WeightFormat,
        *,
        ctx: int,
        chunk_tokens: int,
        kv_type: KvType,
        refresh: bool = False,
    ) -> BlockTimes:
        """What a stage costs beside its blocks includes the way from the event loop to the engine thread and back, with a frame."""
        times = await self._measured(
            lambda: self._cache.blocks(
                config, fmt, threads=self._threads, ctx=ctx, chunk_tokens=chunk_tokens, kv_type=kv_type, refresh=refresh
            )
        )
        extra_s = await self._hand_over(config.d_model)
        decode, prefill = (replace(t, overhead_s=t.overhead_s + extra_s) for t in (times.decode, times.prefill))
        return BlockTimes(decode, prefill, times.chunk_tokens)

    def known_blocks(self, spec: StageSpec) -> BlockTimes | None:
        """What this device measured for the model of a stage; None when it has not, or too long ago."""
        shape = spec.shape
        return self._cache.known_blocks(
            spec.config, spec.fmt, threads=shape.threads, ctx=shape.ctx, chunk_tokens=spec.max_tokens, kv_type=shape.kv_type
        )

    async def head(self, config: ModelConfig, fmt: WeightFormat, *, refresh: bool = False) -> HeadTime:
        return await self._measured(lambda: self._cache.head(config, fmt, threads=self._threads, refresh=refresh))

    async def _measured(self, measure: Callable[[], T]) -> T:
        def work() -> T:
            value = measure()
            give_back_freed_memory()
            return value

        return await self._engine.run(work)

    async def _hand_over(self, d_model: int) -> float:
        """Seconds from the event loop to the engine thread and back, in which a frame of one row is read and another one written.

        Measured once, as it is in a ring: both threads have slept, and a stage's weights have taken the cache meanwhile.
        """
        if self._hand_over_s is None:
            hidden = np.zeros((1, d_model), np.float32)
            data = encode(Frame(1, 0, (Row(0, 0, 1, 1),), (), hidden))
            limits = FrameLimits(d_model, 1, 1, 1, "f32")
            chill = Chill(CHILL_S)
            times = []
            for _ in range(HAND_OVERS):
                await self._engine.run(chill)
                await asyncio.sleep(random.uniform(*HAND_OVER_PAUSES_S))
                started_s = time.perf_counter()
                await self._engine.run(lambda: encode(decode(data, limits)))
                times.append(time.perf_counter() - started_s)
            self._hand_over_s = median(times)
        return self._hand_over_s
