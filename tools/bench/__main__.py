"""The command: see the package."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import platformdirs

import tools.bench
from mdi.errors import MdiError
from mdi.model.quantise import Quant
from tools.bench import bandwidth, batch, gguf_files, load, rings
from tools.bench.bench import Bench
from tools.llama_cpp import QUANTISED
from tools.make_checkpoint import DTYPES, exit_with_error
from tools.shapes import SHAPES

PARTS = ("single", "pair", "house", "gguf", "batch", "bandwidth", "load", "convert")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench",
        description=tools.bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--vocab", type=int, help="a smaller vocabulary, such as 32000")
    parser.add_argument("--directory", type=Path, default=Path(platformdirs.user_cache_dir("mdi-bench")))
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of a checkpoint that is made")
    parser.add_argument("--blocks", type=int, nargs="+", default=[128, 256], help="quantisation block sizes")
    parser.add_argument(
        "--quant", type=Quant, default=Quant.INT4, help="what MDI makes of the weights; int4-plain is made fastest"
    )
    parser.add_argument(
        "--kinds", choices=["q4_0", "q8_0", *QUANTISED], nargs="+", default=["q4_0", "q4_k_m"], help="of GGUF files"
    )
    parser.add_argument("--sequences", type=int, nargs="+", default=[2, 4, 8], help="at once, in the part batch")
    parser.add_argument(
        "--conversions", type=Quant, nargs="+", default=[Quant.INT4_PLAIN, Quant.INT4], help="what the part convert makes"
    )
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=["single", "pair"])
    parser.add_argument("--no-llama", dest="llama", action="store_false", help="single, pair: leave out llama.cpp")
    parser.add_argument("--no-rpc", dest="rpc", action="store_false", help="leave out llama.cpp's RPC backend")
    parser.add_argument("--no-quality", dest="quality", action="store_false", help="gguf: leave out perplexity and KL")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the nodes' gRPC core would write of every certificate that is looked at
    try:
        with tempfile.TemporaryDirectory(prefix="mdi-bench-") as scratch:
            bench = Bench(args, Path(scratch))
            for part in PARTS:
                if part in args.parts:
                    run(part, bench)
    except MdiError as error:
        return exit_with_error(error)
    if args.json:
        args.json.write_text(json.dumps(bench.results, indent=2))
    return 0


def run(part: str, bench: Bench) -> None:
    """One part, with every number of threads where that makes a difference to it."""
    match part:
        case "pair":
            rings.pair(bench)
        case "house":
            rings.house(bench)
        case "gguf":
            gguf_files.same_files(bench)
        case "load":
            load.starts(bench, max(bench.args.threads))
        case "convert":
            load.conversions(bench)
        case _:
            by_threads = {"single": rings.single, "batch": batch.batched, "bandwidth": bandwidth.read_share}
            for threads in bench.args.threads:
                by_threads[part](bench, threads)


if __name__ == "__main__":
    sys.exit(main())
