"""How fast torch computes and copies on its device: the two bounds of everything that a GPU does with a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mdi.engine.torch_device import compute_dtype, free_bytes, on_device, synchronise
from mdi.profile.timing import Timing, repeat

WIDTH = 4096  # of the square matrices: d_model of a 7B model
ROWS = 4096  # arithmetic on a large GPU is bound by it from about 1000 rows on
CPU_ROWS = 128
COPY_BYTES = 1 << 30  # 20 times the largest cache of a GPU on sale (50 MiB of an H100)
CPU_COPY_BYTES = 256 << 20
FREE_SHARE = 4  # a copy takes at most a quarter of what is free, twice
QUEUED = 8  # calls in one sample: a single one would also measure the launch, which the CPU does not have
TIME_BOX_S = 0.4


def copy_timing(device: torch.device) -> tuple[int, Timing]:
    """(bytes read and written in one copy, its time) of a memory-to-memory copy that no cache holds."""
    size = COPY_BYTES if device.type != "cpu" else CPU_COPY_BYTES
    if device.type != "cpu":
        size = min(size, free_bytes(device) // FREE_SHARE)
    with torch.no_grad(), on_device(device):
        source = torch.zeros(size // 4, dtype=torch.int32, device=device)
        target = torch.empty_like(source)
        timing = _timing(device, lambda: target.copy_(source))
    return 2 * source.nbytes, timing


def matmul_timing(device: torch.device) -> tuple[int, Timing]:
    """(operations, time) of a matrix product in the type that the engine computes in; a multiply-add is two operations."""
    rows = ROWS if device.type != "cpu" else CPU_ROWS
    dtype = compute_dtype(device)
    with torch.no_grad(), on_device(device):
        x = torch.randn((rows, WIDTH), device=device).to(dtype)
        weight = torch.randn((WIDTH, WIDTH), device=device).to(dtype)
        timing = _timing(device, lambda: torch.nn.functional.linear(x, weight))
    return 2 * rows * WIDTH * WIDTH, timing


def cache_flusher(device: torch.device, n_bytes: int) -> Callable[[], object]:
    """A function that reads so much memory of the device that nothing else is left in its cache."""
    other = torch.ones(max(1, n_bytes // 4), dtype=torch.int32, device=device)

    def flush() -> Tensor:
        result = other.max()
        synchronise(device)
        return result

    return flush


def _timing(device: torch.device, call: Callable[[], object]) -> Timing:
    calls = QUEUED if device.type != "cpu" else 1

    def several() -> None:
        for _ in range(calls):
            call()
        synchronise(device)

    timing = repeat(several, TIME_BOX_S)
    return Timing(timing.seconds / calls, timing.spread, timing.n_samples)
