"""This device's measurements, made in the engine thread when it is free and remembered."""

from __future__ import annotations

from pathlib import Path

from mdi.engine.backend import Backend
from mdi.engine.thread import EngineThread
from mdi.model.config import ModelConfig
from mdi.model.quantise import WeightFormat
from mdi.profile.blocks import BlockTimes, HeadTime
from mdi.profile.cache import ProfileCache
from mdi.profile.device import DeviceProfile


class Measurer:
    """Asks the profile cache, in the thread that computes: a measurement beside a running step would measure neither."""

    def __init__(self, directory: Path, engine: EngineThread, threads: int, backend: Backend) -> None:
        self._cache = ProfileCache(directory, backend=backend)
        self._engine = engine
        self._threads = threads

    async def device(self, *, refresh: bool = False) -> DeviceProfile:
        return await self._engine.run(lambda: self._cache.device(self._threads, refresh=refresh))

    async def blocks(
        self, config: ModelConfig, fmt: WeightFormat, *, ctx: int, chunk_tokens: int, refresh: bool = False
    ) -> BlockTimes:
        return await self._engine.run(
            lambda: self._cache.blocks(config, fmt, threads=self._threads, ctx=ctx, chunk_tokens=chunk_tokens, refresh=refresh)
        )

    async def head(self, config: ModelConfig, fmt: WeightFormat, *, refresh: bool = False) -> HeadTime:
        return await self._engine.run(lambda: self._cache.head(config, fmt, threads=self._threads, refresh=refresh))
