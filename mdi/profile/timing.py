"""Timing of repeated work on a machine that may have other work to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEAST_SAMPLES = 3
MOST_SAMPLES = 60


@dataclass(frozen=True, slots=True)
class Timing:
    """`seconds` is the lower quartile of the samples; `spread` their interquartile range divided by it, 0 when all are equal.

    Other work only ever adds to a sample, so median and mean move with the load of the machine. The minimum does not, but it
    sinks as samples are added and takes the one lucky clock boost for the rule. A quarter of the samples in peace is enough here.
    """

    seconds: float
    spread: float
    n_samples: int


def repeat(call: Callable[[], object], box_s: float, between: Callable[[], object] | None = None) -> Timing:
    """Times `call` until `box_s` have passed, `between` running untimed before each.

    The first call is a warm-up, unless it alone takes longer than the box: then it is the result, for slow devices. In all at
    most about (LEAST_SAMPLES + 1) times the box, or that one call.
    """

    def sample_s() -> float:
        if between is not None:
            between()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    warm_up_s = sample_s()
    if warm_up_s > box_s:
        return Timing(warm_up_s, 0.0, 1)
    samples: list[float] = []
    end = time.perf_counter() + box_s
    while len(samples) < LEAST_SAMPLES or (len(samples) < MOST_SAMPLES and time.perf_counter() < end):
        samples.append(sample_s())
    low, high = np.quantile(samples, (0.25, 0.75))
    return Timing(float(low), float((high - low) / low), len(samples))


def spread_of(values: list[float]) -> float:
    """Largest minus smallest, divided by the smallest: how far repeated measurements lie apart."""
    return (max(values) - min(values)) / min(values)
