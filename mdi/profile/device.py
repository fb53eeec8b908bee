"""What this device is, and how fast it computes and reads with the engine's own kernels."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from numpy.typing import NDArray

from mdi.engine.backend import ONNX, Backend
from mdi.errors import InternalError, NoRoom
from mdi.model.packs import Pack, PackKind
from mdi.model.quantise import WeightFormat
from mdi.profile.cpu import cpu_features, cpu_model, last_level_cache_bytes, physical_cores, usable_cpus
from mdi.profile.memory import backend_available_bytes, format_bytes
from mdi.profile.synthetic import scratch_directory, write_pack
from mdi.profile.timing import Timing, repeat

if TYPE_CHECKING:
    import onnxruntime as ort

WORKING_SET_BYTES = 192 << 20  # 6 times the 32 MiB cache of a desktop: what stays in it between two passes is under a sixth
MOST_WORKING_SET_BYTES = 1 << 30
CACHES = 4  # where the cache is larger than that, the working set is this many times it
COPIES = 2  # a weight lies in its (written) file and, rearranged for the kernel, in memory

FORMAT = WeightFormat(4, 128)
WIDTH = 4096  # of the square matrices: d_model of a 7B model
ROWS = 128  # enough to be bound by arithmetic (facts: 32 rows reach 94 % of it)
TIME_BOX_S = 0.4


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """`usable_cpus` are the logical processors that this process may use, `usable_cores` the physical cores behind them."""

    cpu: str
    usable_cores: int
    usable_cpus: int
    features: tuple[str, ...]
    os: str
    memory_bytes: int

    @classmethod
    def of_this_device(cls) -> DeviceInfo:
        cpus = usable_cpus()
        return cls(
            cpu=cpu_model(),
            usable_cores=physical_cores(cpus),
            usable_cpus=len(cpus),
            features=cpu_features(),
            os=f"{platform.system()} {platform.release()} {platform.machine()}",
            memory_bytes=psutil.virtual_memory().total,
        )


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Arithmetic at many rows and reading at one, of int4 weights with `threads` threads; a multiply-add is two operations.

    Of a torch device: arithmetic in the type that it computes in, and bytes read and written by a copy.

    The spreads are those of `timing.Timing`: 0.1 means that the middle half of the samples lies within 10 %.
    """

    tflops: float
    read_bytes_per_s: float
    threads: int
    tflops_spread: float
    read_spread: float

    def __post_init__(self) -> None:
        if not (0 < self.tflops < 1e6 and 0 < self.read_bytes_per_s < 1e15 and self.threads >= 1):
            raise InternalError(f"measured {self.tflops} TFLOPS and {self.read_bytes_per_s} bytes/s on {self.threads} threads")


def working_set_bytes(backend: Backend = ONNX) -> int:
    """Weights that together do not fit the cache."""
    cache_bytes = last_level_cache_bytes() if backend.accelerator is None else backend.cache_bytes()
    return min(MOST_WORKING_SET_BYTES, max(WORKING_SET_BYTES, CACHES * cache_bytes))


def spare_bytes(least_bytes: int, backend: Backend = ONNX) -> int:
    """Bytes of weights that may be loaded to measure: half of what is free, but at least `least_bytes`.

    Raises NoRoom when not even those fit, in their two copies.
    """
    free = backend_available_bytes(backend)
    if free < COPIES * least_bytes:
        needed = format_bytes(COPIES * least_bytes)
        raise NoRoom(
            f"measuring needs {needed} of free memory, and there are {format_bytes(free)}", hint="close other programs"
        )
    return max(least_bytes, free // 2 // COPIES)


def measure_device(threads: int, *, backend: Backend = ONNX, scratch: Path | None = None) -> DeviceProfile:
    """Takes about a second and up to 400 MiB, on a Pi 4 about two. Raises NoRoom, and UserError when the disk is full."""
    if backend.runtime is not None:
        return _measure_torch(threads, backend)
    matrix_bytes = FORMAT.linear_bytes(WIDTH, WIDTH)
    n = min(working_set_bytes(), spare_bytes(matrix_bytes)) // matrix_bytes
    with scratch_directory(n * matrix_bytes, scratch) as directory:
        linears = {f"w{i}": (WIDTH, WIDTH) for i in range(n)}
        pack = write_pack(directory / "device", PackKind.BLOCK, FORMAT, linears, {})
        rows = np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)
        many = _time(pack, 1, threads, rows)
        one = _time(pack, n, threads, rows[:1])
    return DeviceProfile(
        tflops=2 * ROWS * WIDTH * WIDTH / many.seconds / 1e12,
        read_bytes_per_s=n * matrix_bytes / one.seconds,
        threads=threads,
        tflops_spread=many.spread,
        read_spread=one.spread,
    )


def _measure_torch(threads: int, backend: Backend) -> DeviceProfile:
    from mdi.engine.torch_device import set_threads
    from mdi.profile.accelerator import copy_timing, matmul_timing

    set_threads(backend.torch_device, threads)
    n_bytes, copy = copy_timing(backend.torch_device)
    operations, product = matmul_timing(backend.torch_device)
    return DeviceProfile(operations / product.seconds / 1e12, n_bytes / copy.seconds, threads, product.spread, copy.spread)


def _time(pack: Pack, n: int, threads: int, rows: NDArray[np.float32]) -> Timing:
    """One session at a time: its threads spin for a while after each run, and would disturb another's."""
    chain = _chain(pack, n, threads)
    return repeat(lambda: chain.run(None, {"x": rows}), TIME_BOX_S)


def _chain(pack: Pack, n: int, threads: int) -> ort.InferenceSession:
    """x [T, WIDTH] through the first `n` matrices, one after the other."""
    # Not above: an idle node imports this file, and is 30 MiB smaller without the runtime (`python -m tools.start_times`).
    from onnx import TensorProto

    from mdi.engine.graph import GraphBuilder
    from mdi.engine.onnx_engine import open_session

    g = GraphBuilder("chain")
    x = g.input("x", TensorProto.FLOAT, ["T", WIDTH])
    for i in range(n):
        x = g.linear(f"y{i}", x, pack, f"w{i}", WIDTH)
    g.output(x, TensorProto.FLOAT, ["T", WIDTH])
    return open_session(g.model(), pack.path.parent, threads)
