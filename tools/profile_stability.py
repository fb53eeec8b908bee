"""How well the profile of this device repeats: three runs side by side, and how far they lie apart.

python -m tools.profile_stability llama-7b --threads 4
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from mdi.errors import MdiError
from mdi.model.config import ModelConfig
from mdi.model.quantise import DEFAULT_BLOCK, Quant, WeightFormat
from mdi.profile.blocks import measure_blocks, measure_head
from mdi.profile.condition import LoadWatch
from mdi.profile.device import DeviceInfo, measure_device
from mdi.profile.grid import measure_grid
from mdi.profile.timing import spread_of
from tools.shapes import SHAPES, named_shape

RUNS = 3


def one_run(config: ModelConfig, fmt: WeightFormat, threads: int, ctx: int, chunk_tokens: int) -> dict[str, float]:
    """Every measured number by its name with its unit."""
    start, watch = time.perf_counter(), LoadWatch()
    device = measure_device(threads)
    blocks = measure_blocks(config, fmt, threads=threads, ctx=ctx, chunk_tokens=chunk_tokens)
    head = measure_head(config, fmt, threads)
    grid = measure_grid(config, fmt, blocks.decode.overhead_s, threads=threads)
    taken_s = time.perf_counter() - start
    n = config.n_blocks
    return {
        "device TFLOPS": device.tflops,
        "device read GB/s": device.read_bytes_per_s / 1e9,
        "decode block ms": blocks.decode.block_s * 1e3,
        "decode overhead ms": blocks.decode.overhead_s * 1e3,
        "prefill block ms": blocks.prefill.block_s * 1e3,
        "prefill overhead ms": blocks.prefill.overhead_s * 1e3,
        "head ms": head.decode_s * 1e3,
        "whole model, decode tok/s": 1 / (blocks.decode.seconds(n) + head.decode_s),
        "whole model, prefill tok/s": blocks.chunk_tokens / (blocks.prefill.seconds(n) + head.decode_s),
        **{
            f"block ms, {point.rows} x {point.tokens} after {point.position}": point.block_s * 1e3
            for point in (*grid.decode, *grid.prefill)
        },
        "measuring took s": taken_s,
        "others' share %": watch.load().others_share * 100,
    }


def table(runs: Sequence[dict[str, float]]) -> str:
    """A line for each number: the runs, and (largest - smallest) / smallest."""
    lines = [f"{'':32}" + "".join(f"{f'run {i + 1}':>12}" for i in range(len(runs))) + f"{'apart':>9}"]
    for name in runs[0]:
        values = [run[name] for run in runs]
        apart = f"{spread_of(values):9.1%}" if min(values) > 0 else f"{'-':>9}"
        lines.append(f"{name:32}" + "".join(f"{value:12.4g}" for value in values) + apart)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    info = DeviceInfo.of_this_device()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b", help=f"one of: {', '.join(SHAPES)}")
    parser.add_argument("--quant", type=Quant, choices=list(Quant), default=Quant.INT4)
    parser.add_argument("--block", type=int, default=DEFAULT_BLOCK)
    parser.add_argument("--threads", type=int, default=info.usable_cores)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=128)
    options = parser.parse_args(arguments)
    try:
        shape, fmt = named_shape(options.shape), WeightFormat.of(options.quant, options.block)
        config = ModelConfig.from_hf(shape.config("float16"), options.shape)
        show(f"{info.cpu}, {info.usable_cores} cores ({' '.join(info.features)}), {info.os}")
        show(f"{options.shape}, {options.quant}, threads {options.threads}, chunk {options.chunk}")
        show(table([one_run(config, fmt, options.threads, options.ctx, options.chunk) for _ in range(RUNS)]))
    except MdiError as error:
        print(error, error.hint or "", sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
