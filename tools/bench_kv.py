"""What KV in 8 bits costs and gains in time beside fp32: stages of a real shape take turns at decode and prompt chunks.

    python -m tools.bench_kv                                       # Llama-3.2-1B's shape, 1 thread
    python -m tools.bench_kv --shape llama-7b --blocks 2 --threads 2 --positions 128 1024 4096

Ratios are medians over rounds of the time with int8 to that with fp32 right before it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from mdi.engine.onnx_engine import OnnxEngine
from mdi.engine.protocol import StageShape
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.layout import default_block
from mdi.model.packed import packed_bytes
from mdi.model.quantise import WeightFormat
from mdi.profile.synthetic import block_packs, scratch_directory
from mdi.wire.frame import Row
from tools.shapes import SHAPES, named_shape

FILL_TOKENS = 256  # of KV at a time, before a position is timed
DECODE_BURST = 4  # steps of one timing


def main(arguments: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--blocks", type=int, default=4, help="how many of the model's blocks a stage has")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--positions", type=int, nargs="+", default=[128, 1024, 4096])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 128], help="new tokens of a step")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    config = ModelConfig.from_hf(named_shape(args.shape).config("fp16"))
    fmt = WeightFormat(4, default_block(config))
    ctx = max(args.positions) + max(args.tokens)
    hidden = np.random.default_rng(0).standard_normal((max(FILL_TOKENS, *args.tokens), config.d_model), dtype=np.float32)
    with scratch_directory(args.blocks * packed_bytes(config, fmt)[0]) as directory:
        packs = block_packs(directory, config, fmt, args.blocks)
        engines = [OnnxEngine(config, packs, StageShape(1, ctx, args.threads, kind), 0) for kind in (KvType.FP32, KvType.INT8)]
        show(f"{args.shape}, {args.blocks} blocks, {args.threads} threads")
        show(f"{'tokens':>8}{'after':>8}{'fp32 ms':>10}{'int8 ms':>10}{'int8/fp32':>11}")
        filled = 0
        for position in sorted(args.positions):
            for start in range(filled, position, FILL_TOKENS):
                for engine in engines:
                    engine.forward([Row(0, start, n := min(FILL_TOKENS, position - start), 0)], hidden[:n])
            filled = position
            for tokens in args.tokens:
                fp32, int8 = _alternate(engines, position, hidden[:tokens], args.rounds)
                ratio = median(b / a for a, b in zip(fp32, int8, strict=True))
                show(f"{tokens:8}{position:8}{1e3 * median(fp32):10.2f}{1e3 * median(int8):10.2f}{ratio:11.2f}")
    return 0


def _alternate(
    engines: Sequence[OnnxEngine], position: int, hidden: np.ndarray, rounds: int
) -> tuple[list[float], list[float]]:  # type: ignore[type-arg]
    """Seconds of a step on each engine, in turns; the first turn warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    burst = DECODE_BURST if len(hidden) == 1 else 1
    for turn in range(rounds + 1):
        for engine, taken in zip(engines, times, strict=True):
            started = time.perf_counter()
            for _ in range(burst):
                engine.forward([Row(0, position, len(hidden), 0)], hidden)
            if turn:
                taken.append((time.perf_counter() - started) / burst)
    return times


if __name__ == "__main__":
    sys.exit(main())
