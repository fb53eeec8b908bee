"""Numbers as people read them."""

from __future__ import annotations


def milliseconds(seconds: float) -> str:
    """Three figures: 0.123 ms, 4.56 ms, 78.9 ms, 1234 ms."""
    ms = seconds * 1000
    decimals = 0 if ms >= 100 else 1 if ms >= 10 else 2 if ms >= 1 else 3
    return f"{ms:.{decimals}f} ms"


def binary_bytes(n_bytes: int) -> str:
    """1.5 GiB, 320 MiB, 12 KiB."""
    if n_bytes >= 1 << 30:
        return f"{n_bytes / (1 << 30):.1f} GiB"
    if n_bytes >= 1 << 20:
        return f"{n_bytes / (1 << 20):.0f} MiB"
    return f"{n_bytes / (1 << 10):.0f} KiB"


def counted(n: int, noun: str) -> str:
    """1 block, 2 blocks."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
