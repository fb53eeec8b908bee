"""The command: see the package. Exit code 77: this machine, or this user, cannot have a testbed; the reason is printed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import platformdirs

import tools.bench_plan
from mdi.errors import MdiError
from tools.bench_plan.alternatives import alternatives
from tools.bench_plan.bench import PlanBench
from tools.bench_plan.exhaustive import exhaustive
from tools.bench_plan.predictions import MODELS, TESTBEDS, predictions
from tools.bench_plan.slowdown import slowdown
from tools.bench_plan.times import times
from tools.make_checkpoint import exit_with_error
from tools.shapes import SHAPES
from tools.testbed.bed import unwinding
from tools.testbed.machine import CannotBuild

PARTS = {
    "alternatives": alternatives,
    "predictions": predictions,
    "exhaustive": exhaustive,
    "times": times,
    "slowdown": slowdown,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_plan",
        description=tools.bench_plan.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--new", type=int, default=24, help="tokens of an answer")
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b", help="alternatives: of the model")
    parser.add_argument("--testbeds", choices=TESTBEDS, nargs="+", default=TESTBEDS, help="predictions: on which")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS), help="predictions: with which")
    parser.add_argument("--verbose", action="store_true", help="predictions: also what each consists of, in ms")
    parser.add_argument("--directory", type=Path, default=Path(platformdirs.user_cache_dir("mdi-bench")), help="of checkpoints")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    bench = PlanBench(args)
    try:
        with unwinding():
            for part, call in PARTS.items():
                if part in args.parts:
                    call(bench)
    except CannotBuild as error:
        print(f"skipped: {error}", file=sys.stderr)
        return error.exit_code
    except MdiError as error:
        return exit_with_error(error)
    if args.json:
        args.json.write_text(json.dumps(bench.results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
