"""Measurements kept in JSON files under what they depend on, so that a node measures a model once a week."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mdi import __version__
from mdi.engine.backend import ONNX, Backend
from mdi.errors import InternalError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.quantise import WeightFormat
from mdi.profile.blocks import BlockTimes, HeadTime, LinearTime, ctx_class, measure_blocks, measure_head
from mdi.profile.condition import Load
from mdi.profile.cpu import cpu_model, usable_cpus
from mdi.profile.device import DeviceProfile, measure_device
from mdi.profile.disk import DiskSpeed, measure_disk
from mdi.profile.grid import BlockGrid, BlockPoint, measure_grid

MOST_FILES = 64  # of about 1 KiB: a dozen models in a few formats and thread counts
MAX_AGE_S = 7 * 24 * 3600.0  # cooling, governor and other software change within weeks, unseen by the key
METHOD = 2  # raised when a time is measured in another way; 2: no two blocks have equal weights
NOT_SHAPE = ("max_positions", "norm_eps", "rope", "local_rope", "tied_head", "bos_id", "eos_ids")  # costs no time

Value = TypeVar("Value", BlockTimes, HeadTime, DeviceProfile, BlockGrid, DiskSpeed, Load)
Json = Mapping[str, Any]


class ProfileCache:
    """Measures what it does not know, or knows only from before MAX_AGE_S; `refresh` measures again.

    Files appear whole. One that is damaged counts as missing; a directory that cannot be written only costs time. Two processes
    that ask for the same at once both measure, and disturb each other.
    """

    def __init__(self, directory: Path, *, backend: Backend = ONNX, clock: Callable[[], float] = time.time) -> None:
        self._backend = backend
        self._directory = directory
        self._clock = clock
        self.n_measured = 0  # by this object: what was remembered does not count

    def device(self, threads: int, *, refresh: bool = False) -> DeviceProfile:
        key = _key(self._backend, "device", threads)
        return self._value(
            key, lambda data: DeviceProfile(**data), lambda: measure_device(threads, backend=self._backend), refresh
        )

    def blocks(
        self,
        config: ModelConfig,
        fmt: WeightFormat,
        *,
        threads: int,
        ctx: int,
        chunk_tokens: int,
        kv_type: KvType = KvType.FP32,
        refresh: bool = False,
    ) -> BlockTimes:
        """See `measure_blocks`; contexts of one `ctx_class` share an entry."""
        key = self._blocks_key(config, fmt, threads, ctx, chunk_tokens, kv_type)

        def measure() -> BlockTimes:
            return measure_blocks(
                config, fmt, threads=threads, ctx=ctx, chunk_tokens=chunk_tokens, kv_type=kv_type, backend=self._backend
            )

        return self._value(key, _block_times, measure, refresh)

    def known_blocks(
        self, config: ModelConfig, fmt: WeightFormat, *, threads: int, ctx: int, chunk_tokens: int, kv_type: KvType
    ) -> BlockTimes | None:
        """What `blocks` would give without measuring; None when it would have to."""
        key = self._blocks_key(config, fmt, threads, ctx, chunk_tokens, kv_type)
        return self._read(self._path(key), key, _block_times)

    def _blocks_key(
        self, config: ModelConfig, fmt: WeightFormat, threads: int, ctx: int, chunk_tokens: int, kv_type: KvType
    ) -> Json:
        key = _key(self._backend, "blocks", threads, config, fmt)
        return key | {"ctx": ctx_class(ctx), "chunk_tokens": chunk_tokens, "kv_type": self._backend.kv_type(kv_type)}

    def head(self, config: ModelConfig, fmt: WeightFormat, *, threads: int, refresh: bool = False) -> HeadTime:
        """See `measure_head`."""
        key = _key(self._backend, "head", threads, config, fmt)
        measure = partial(measure_head, config, fmt, threads, backend=self._backend)
        return self._value(key, lambda data: HeadTime(**data), measure, refresh)

    def grid(
        self, config: ModelConfig, fmt: WeightFormat, overhead_s: float, *, threads: int, refresh: bool = False
    ) -> BlockGrid:
        """See `measure_grid`."""
        key = _key(self._backend, "grid", threads, config, fmt)
        measure = partial(measure_grid, config, fmt, overhead_s, threads=threads, backend=self._backend)
        return self._value(key, _grid, measure, refresh)

    def disk(self, *, refresh: bool = False) -> DiskSpeed:
        """See `measure_disk`: of the disk on which this cache lies, as the packs do."""
        key = {"what": "disk", "directory": str(self._directory)}

        def measure() -> DiskSpeed:
            self._directory.mkdir(parents=True, exist_ok=True)
            return measure_disk(self._directory)

        return self._value(key, lambda data: DiskSpeed(**data), measure, refresh)

    def load(self, config: ModelConfig, fmt: WeightFormat, threads: int, found: Load, *, renew: bool) -> Load:
        """How loaded the device was when this model was measured: `found` if that was now (`renew`), else what was remembered."""
        return self._value(_key(self._backend, "load", threads, config, fmt), lambda data: Load(**data), lambda: found, renew)

    def _value(self, key: Json, parse: Callable[[Json], Value], measure: Callable[[], Value], refresh: bool) -> Value:
        path = self._path(key)
        if not refresh and (known := self._read(path, key, parse)) is not None:
            return known
        value = measure()
        self.n_measured += 1
        with contextlib.suppress(OSError):  # it is measured again next time
            self._write(path, {"key": key, "measured_at": self._clock(), "value": asdict(value)})
        return value

    def _path(self, key: Json) -> Path:
        return self._directory / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:32]}.json"

    def _read(self, path: Path, key: Json, parse: Callable[[Json], Value]) -> Value | None:
        try:
            entry = json.loads(path.read_text())
            fresh = 0 <= self._clock() - entry["measured_at"] <= MAX_AGE_S
            return parse(entry["value"]) if fresh and entry["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError, InternalError):
            return None

    def _write(self, path: Path, entry: Json) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=self._directory)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(_text(entry))
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Entries beyond MOST_FILES, and what killed processes left of theirs."""
        files = [*self._directory.glob("*.json"), *self._directory.glob(".partial-*")]
        ages = []
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # another process dropped it, or gave it its name
                ages.append((file.stat().st_mtime_ns, file))
        for _, file in sorted(ages)[:-MOST_FILES]:
            file.unlink(missing_ok=True)


def _key(
    backend: Backend, what: str, threads: int, config: ModelConfig | None = None, fmt: WeightFormat | None = None
) -> dict[str, Any]:
    """Everything that a time depends on; fine-tunes of one model share it."""
    return {
        "what": what,
        "shape": {name: value for name, value in json.loads(config.to_json()).items() if name not in NOT_SHAPE}
        if config
        else None,
        "format": fmt.to_json() if fmt else None,
        "threads": threads,
        "cpu": cpu_model(),
        "usable_cpus": len(usable_cpus()),
        "device": backend.device,
        "accelerator": backend.accelerator,
        "runtime": _runtime(backend),
        "mdi": __version__,
        "method": METHOD,
    }


def _runtime(backend: Backend) -> str:
    if backend.runtime is not None:
        return f"torch {backend.runtime}"
    import onnxruntime as ort  # not above: an idle node has no need of it

    return f"onnxruntime {ort.__version__}"


def _block_times(data: Json) -> BlockTimes:
    return BlockTimes(LinearTime(**data["decode"]), LinearTime(**data["prefill"]), int(data["chunk_tokens"]))


def _grid(data: Json) -> BlockGrid:
    decode, prefill = (tuple(BlockPoint(**point) for point in data[name]) for name in ("decode", "prefill"))
    return BlockGrid(decode, prefill)


def _text(value: Json) -> str:
    return json.dumps(value, sort_keys=True)
