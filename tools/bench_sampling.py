"""Microseconds that one token takes in the sampler, by settings, at the vocabulary of Llama 3.

python -m tools.bench_sampling
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from mdi.engine.logits import logprobs
from mdi.engine.sampling import SamplingParams, sample

VOCAB = 128_256
SPREADS = {"peaked": 3.0, "flat": 0.5}  # standard deviation of the logits; those of trained models are peaked
N_TOKENS = 2000  # prompt and answer that penalties look at
REPEATS = 200

SETTINGS = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(1.0),
    "min-p": SamplingParams(0.7, min_p=0.05),
    "top-k 40": SamplingParams(0.7, top_k=40),
    "top-p 0.9": SamplingParams(0.7, top_p=0.9),
    "top-k 40, top-p 0.95, min-p 0.05": SamplingParams(0.7, 40, 0.95, 0.05),
    "greedy, three penalties and a bias": SamplingParams(
        repetition_penalty=1.1, frequency_penalty=0.1, presence_penalty=0.1, logit_bias=((3, 1.0),)
    ),
}


def median_us(call: Callable[[int], object]) -> float:
    call(0)
    times_s = []
    for i in range(REPEATS):
        started_s = time.perf_counter()
        call(i)
        times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s) * 1e6


def main() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, N_TOKENS).tolist()
    allowed = rng.random(VOCAB) < 0.1
    rows = {name: (rng.standard_normal(VOCAB) * spread).astype(np.float32) for name, spread in SPREADS.items()}
    calls: dict[str, Callable[[np.ndarray, int], object]] = {
        name: lambda row, i, params=params: sample(row, params, i, tokens) for name, params in SETTINGS.items()
    }
    calls["greedy, constrained"] = lambda row, i: sample(row, SamplingParams(), i, tokens, allowed)
    calls["logprobs of 5"] = lambda row, i: logprobs(row, 3, 5)
    table = Table(f"microseconds per token of {VOCAB}", *SPREADS)
    for name, call in calls.items():
        table.add_row(name, *(f"{median_us(lambda i, row=row, call=call: call(row, i)):.0f}" for row in rows.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
