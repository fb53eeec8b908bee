"""Decode on a GPU against what its memory can do: `python -m tools.bench_gpu`.

For a random model of a real shape, one conversation: bytes of weights per token over the time of a token, as a share of the bandwidth of a
copy measured in the same run. Plain weights in the device's own type, int8 and int4. One JSON object on stdout.

A token is what a user waits for: hidden state in and out of numpy, all blocks, norm and head; not the sampling.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdi.engine.backend import AUTO, ONNX, Backend, choose_backend
from mdi.engine.protocol import StageShape
from mdi.engine.torch_device import compute_dtype, set_threads
from mdi.engine.torch_engine import TorchEngine, TorchHead
from mdi.errors import MdiError, UserError
from mdi.model.config import ModelConfig
from mdi.model.packed import packed_bytes
from mdi.model.quantise import DEFAULT_BLOCK, Quant, WeightFormat
from mdi.profile.accelerator import copy_timing, matmul_timing
from mdi.profile.synthetic import block_packs, head_pack, scratch_directory
from mdi.profile.timing import repeat
from mdi.wire.frame import Row
from tools.make_checkpoint import exit_with_error
from tools.shapes import SHAPES, named_shape

QUANTS = (Quant.NONE, Quant.INT8, Quant.INT4)  # auto is one of them
TIME_BOX_S = 3.0
PREFILL_BOX_S = 1.0


@dataclass(frozen=True, slots=True)
class Decode:
    """One weight format. `share` is `bytes_per_token / token_s / copy_bytes_per_s`; the copy is the faster of one before and one after."""

    weights: str
    compiled: bool
    bytes_per_token: int
    kv_bytes_per_token: int
    token_s: float
    token_spread: float
    tokens_per_s: float
    read_bytes_per_s: float
    copy_bytes_per_s: float
    share: float
    prefill_tokens_per_s: float


def usable(device: str) -> Backend:
    """Raises UserError where torch has nothing to compute on: onnxruntime has its own benchmark."""
    backend = choose_backend(device)
    if backend == ONNX:
        raise UserError(
            "torch sees no GPU here, and this benchmark measures torch", hint="--device torch-cpu measures it on the CPU"
        )
    return backend


def measure(config: ModelConfig, quant: Quant, args: argparse.Namespace, device: torch.device) -> Decode:
    """Every block is loaded from one file of random weights: on a GPU each gets its own copy."""
    fmt = WeightFormat.of(quant, args.block)
    shape = StageShape(n_slots=1, ctx=args.ctx, threads=args.threads)
    with scratch_directory(sum(packed_bytes(config, fmt)), args.scratch) as directory:
        packs = block_packs(directory, config, fmt, 1) * config.n_blocks
        engine = TorchEngine(config, packs, shape, 0, device)
        head = TorchHead(config, head_pack(directory, config, fmt), args.threads, device)
        hidden = np.random.default_rng(0).standard_normal((args.chunk, config.d_model), dtype=np.float32)
        for start in range(0, args.position, args.chunk):
            count = min(args.chunk, args.position - start)
            engine.forward([Row(0, start, count, 0)], hidden[:count])

        def token() -> None:
            head.logits(engine.forward([Row(0, args.position, 1, 1)], hidden[:1]))

        before = copy_bytes_per_s(device)
        token()  # on CUDA the first one records the graph
        timing = repeat(token, TIME_BOX_S)
        after = copy_bytes_per_s(device)
        prefill = repeat(lambda: engine.forward([Row(0, 0, args.chunk, 0)], hidden), PREFILL_BOX_S)
    n_bytes = engine.weight_bytes + head.weight_bytes
    copy = max(before, after)
    return Decode(
        weights=str(compute_dtype(device)).removeprefix("torch.") if quant is Quant.NONE else quant.value,
        compiled=engine.compiled,
        bytes_per_token=n_bytes,
        kv_bytes_per_token=engine.kv_bytes // engine.capacity * (args.position + 1),
        token_s=timing.seconds,
        token_spread=timing.spread,
        tokens_per_s=1 / timing.seconds,
        read_bytes_per_s=n_bytes / timing.seconds,
        copy_bytes_per_s=copy,
        share=n_bytes / timing.seconds / copy,
        prefill_tokens_per_s=args.chunk / prefill.seconds,
    )


def copy_bytes_per_s(device: torch.device) -> float:
    n_bytes, timing = copy_timing(device)
    return n_bytes / timing.seconds


def run(args: argparse.Namespace) -> dict[str, Any]:
    backend = usable(args.device)
    device = backend.torch_device
    set_threads(device, args.threads)
    config = ModelConfig.from_hf(named_shape(args.shape, blocks=args.blocks).config("float32"))
    operations, product = matmul_timing(device)
    results = []
    for quant in args.quant:
        found = measure(config, quant, args, device)
        backend.release()
        results.append(found)
        say(
            f"{found.weights}: {found.tokens_per_s:.1f} tok/s, {found.read_bytes_per_s / 1e9:.0f} of "
            f"{found.copy_bytes_per_s / 1e9:.0f} GB/s ({found.share:.0%}), prefill {found.prefill_tokens_per_s:.0f} tok/s"
        )
    return {
        "device": backend.device,
        "accelerator": backend.accelerator,
        "torch": backend.runtime,
        "shape": args.shape,
        "n_blocks": config.n_blocks,
        "position": args.position,
        "matmul_tflops": operations / product.seconds / 1e12,
        "decode": [asdict(result) for result in results],
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench_gpu", description=__doc__)
    parser.add_argument("--device", default=AUTO, help="cuda, cuda:N, mps or torch-cpu; auto takes the GPU that torch sees")
    parser.add_argument("--shape", default="llama-7b", choices=SHAPES)
    parser.add_argument("--blocks", type=int, help="fewer blocks than the shape has")
    parser.add_argument("--quant", type=Quant, nargs="+", default=list(QUANTS), choices=QUANTS)
    parser.add_argument("--block", type=int, default=DEFAULT_BLOCK, help="weights that share a scale")
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--position", type=int, default=128, help="tokens in KV when the measured one comes")
    parser.add_argument("--chunk", type=int, default=128, help="tokens of a prefill step")
    parser.add_argument("--threads", type=int, default=1, help="of torch-cpu")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where one block's weights are written"
    )
    args = parser.parse_args(argv)
    if not 0 < args.chunk <= args.ctx or not 0 <= args.position < args.ctx:
        parser.error("--chunk and --position must lie within --ctx")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        print(json.dumps(run(args), indent=1))
    except MdiError as error:
        return exit_with_error(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
