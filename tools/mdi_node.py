"""A daemon pinned to cores, for benchmarks: `mdi node start` without a terminal. Prints one line when it is ready."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from mdi.cluster.home import Home
from mdi.node.daemon import NodeOptions, run_node
from mdi.profile.memory import parse_bytes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cores", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-memory", type=parse_bytes)
    parser.add_argument("--name")
    args = parser.parse_args()
    os.sched_setaffinity(0, {int(core) for core in args.cores.split(",")})
    options = NodeOptions(
        name=args.name,
        host="127.0.0.1",
        port=args.port,
        threads=args.threads,
        discovery=False,
        max_memory_bytes=args.max_memory,
    )
    asyncio.run(run_node(options, Home(args.home).create(), lambda ready: print(ready.node_id, flush=True)))


if __name__ == "__main__":
    main()
