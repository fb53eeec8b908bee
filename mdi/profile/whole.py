"""Everything that this device can say of itself: what it is, what it can do with a model, and in what condition it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mdi.engine.backend import Backend
from mdi.model.config import ModelConfig
from mdi.model.quantise import WeightFormat
from mdi.profile.blocks import BlockTimes, HeadTime
from mdi.profile.cache import ProfileCache
from mdi.profile.condition import Condition, Load, LoadWatch
from mdi.profile.device import DeviceInfo, DeviceProfile
from mdi.profile.disk import DiskSpeed, room
from mdi.profile.grid import BlockGrid, reachable
from mdi.profile.memory import available_bytes, backend_available_bytes, backend_total_bytes, offered_bytes


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is measured, as a node would run it."""

    name: str
    config: ModelConfig
    fmt: WeightFormat
    ctx: int
    chunk_tokens: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the machine. `available_bytes` heeds control groups, `offered_bytes` also what stays free and what the owner allows."""

    total_bytes: int
    available_bytes: int
    offered_bytes: int


@dataclass(frozen=True, slots=True)
class Accelerator:
    device: str  # as --device names it
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Disk:
    directory: str
    free_bytes: int
    total_bytes: int
    speed: DiskSpeed


@dataclass(frozen=True, slots=True)
class WholeProfile:
    """`load` is of the time of measuring, which may be days ago; `measured` says that it was now."""

    info: DeviceInfo
    memory: Memory
    accelerator: Accelerator | None
    device: DeviceProfile
    model: str
    fmt: WeightFormat
    n_blocks: int
    blocks: BlockTimes
    head: HeadTime
    grid: BlockGrid
    disk: Disk
    condition: Condition
    load: Load
    measured: bool

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["format"] = data.pop("fmt")
        data["load"]["loaded"] = self.load.loaded
        return data


def measure_whole(
    directory: Path, subject: Subject, threads: int, backend: Backend, *, max_memory: int | None, refresh: bool
) -> WholeProfile:
    """From the cache in `directory` what is fresh there; the rest takes some seconds. Raises NoRoom and UserError."""
    cache = ProfileCache(directory, backend=backend)
    watch = LoadWatch()
    config, fmt = subject.config, subject.fmt
    device = cache.device(threads, refresh=refresh)
    blocks = cache.blocks(config, fmt, threads=threads, ctx=subject.ctx, chunk_tokens=subject.chunk_tokens, refresh=refresh)
    head = cache.head(config, fmt, threads=threads, refresh=refresh)
    grid = cache.grid(config, fmt, blocks.decode.overhead_s, threads=threads, refresh=refresh)
    measured = cache.n_measured > 0
    load = cache.load(config, fmt, threads, watch.load(), renew=measured)
    disk = Disk(str(directory), *room(directory), cache.disk(refresh=refresh))
    return WholeProfile(
        info=DeviceInfo.of_this_device(),
        memory=_memory(max_memory, backend),
        accelerator=_accelerator(backend),
        device=device,
        model=subject.name,
        fmt=fmt,
        n_blocks=config.n_blocks,
        blocks=blocks,
        head=head,
        grid=reachable(grid, config.max_positions),
        disk=disk,
        condition=Condition.now(),
        load=load,
        measured=measured,
    )


def _memory(max_memory: int | None, backend: Backend) -> Memory:
    return Memory(DeviceInfo.of_this_device().memory_bytes, available_bytes(), offered_bytes(max_memory, 0, backend))


def _accelerator(backend: Backend) -> Accelerator | None:
    if backend.accelerator is None:
        return None
    return Accelerator(backend.device, backend.accelerator, backend_total_bytes(backend), backend_available_bytes(backend))
