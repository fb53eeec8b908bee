"""What torch knows of the device that it computes on: its type of numbers, memory and name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from mdi.errors import NoRoom

BF16_MACOS = (14, 0)  # the first macOS whose Metal computes bfloat16
AMPERE = (8, 0)  # the first compute capability with bfloat16 in hardware


def compute_dtype(device: torch.device) -> torch.dtype:
    """What products are computed in: float32 on the CPU, which is there to be exact."""
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= AMPERE else torch.float16
    return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(*BF16_MACOS) else torch.float16


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return "Apple GPU" if device.type == "mps" else "CPU"


def free_bytes(device: torch.device) -> int:
    """What this process could still take of an accelerator's own memory: what is free, and what torch holds without using it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())


def total_bytes(device: torch.device) -> int:
    """All memory of an accelerator; on MPS the part of the machine's that Metal recommends to use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(torch.mps.recommended_max_memory())


def cache_bytes(device: torch.device) -> int:
    """The last cache before the device's memory; 0 when the device does not tell."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


def release(device: torch.device) -> None:
    """Gives memory that is held without being used back to the other processes on this device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def synchronise(device: torch.device) -> None:
    """Waits for what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes the device the current one of this thread: streams and graphs go by that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def set_threads(device: torch.device, threads: int) -> None:
    """Threads that torch computes with on the CPU; they are the process's, not a stage's."""
    if device.type == "cpu" and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@contextmanager
def out_of_memory(device: torch.device) -> Iterator[None]:
    """Raises NoRoom where torch says in its own ways that the memory is full."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        raise NoRoom(
            f"the memory of {device_name(device)} is full", hint="lower --ctx, or let this node offer less with --max-memory"
        ) from error
