"""A process that says how fast this machine's memory can be read: `python -m tools.bench.reader --threads 2 --cores 0,1`.

Answers every line on standard input with a line of JSON: bytes per second of one pass over BUFFER_BYTES by all threads together. The
maximum of bytes is numpy's fastest reduction here: it reads as fast as a dot product of BLAS and as torch's sum do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BUFFER_BYTES = 1 << 29  # sixteen times the largest cache here


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cores", required=True)
    args = parser.parse_args()
    os.sched_setaffinity(0, {int(core) for core in args.cores.split(",")})
    parts = np.array_split(np.ones(BUFFER_BYTES, np.uint8), args.threads)
    with ThreadPoolExecutor(args.threads) as pool:  # numpy releases the interpreter lock in its loops
        list(pool.map(np.max, parts))
        print(json.dumps({"bytes": BUFFER_BYTES}), flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            print(json.dumps({"bytes_per_s": BUFFER_BYTES / (time.perf_counter() - start)}), flush=True)


if __name__ == "__main__":
    main()
