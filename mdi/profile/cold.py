"""Caches as real steps leave them: full of weights. What is timed in a hot loop of its own would flatter a device."""

from __future__ import annotations

import time

import numpy as np

from mdi.profile.cpu import last_level_cache_bytes

TIMES = 2  # the cache: reading as much again leaves little of what was there
MOST_BYTES = 64 << 20  # 6 ms of a desktop; beyond it are servers, whose caches hold a home's models
PIECE_BYTES = 1 << 20


class Chill:
    """Reads memory until nothing else is left in the cache, for `box_s` at most. Holds its memory while it lives."""

    def __init__(self, box_s: float) -> None:
        self._box_s = box_s
        n_pieces = max(1, min(MOST_BYTES, TIMES * last_level_cache_bytes()) // PIECE_BYTES)
        self._pieces = np.ones((n_pieces, PIECE_BYTES // 8), np.uint64)

    def __call__(self) -> None:
        """Without the interpreter's lock for nearly all of the time."""
        end_s = time.perf_counter() + self._box_s
        for piece in self._pieces:
            piece.max()
            if time.perf_counter() > end_s:
                return
