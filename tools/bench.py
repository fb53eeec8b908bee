"""Speed beside llama.cpp: `make bench`, or `python -m tools.bench`.

Three parts: `single`, one process with 1 and 2 threads beside llama.cpp with as many; `pair`, two nodes of one thread each, pinned to a
core each, beside one process of one thread and beside llama.cpp's RPC backend with two workers; `house`, three daemons of one thread
over which the planner spreads the model, its prediction beside what was measured. All engines of a part stay loaded and take turns, so
that a noisy machine disturbs them alike; medians and ratios of neighbouring rounds are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import platformdirs
from rich.console import Console
from rich.table import Table

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.engine.protocol import StageShape
from mdi.errors import ClusterError, MdiError
from mdi.model.checkpoint import read_config
from mdi.model.packed import packed_bytes
from mdi.model.quantise import WeightFormat
from tools.llama_cpp import LlamaCpp, available_cores, peak_rss_bytes, reset_peak_rss, rpc_workers
from tools.make_checkpoint import exit_with_error, make_checkpoint
from tools.make_gguf import make_gguf
from tools.shapes import SHAPES, named_shape

PORTS = 52760  # and the next ones: away from a node that runs on this machine
PARTS = ("single", "pair", "house")
HOUSE = ("desk", "kitchen", "attic")
START_TIMEOUT_S = 60.0

Measure = Callable[[int, int], "Rates"]


@dataclass(frozen=True, slots=True)
class Rates:
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(slots=True)
class Contender:
    """One engine in one set-up, and what each round measured."""

    name: str
    measure: Measure
    rounds: list[Rates] = field(default_factory=list)

    def median(self, what: str) -> float:
        return statistics.median(getattr(rates, what) for rates in self.rounds)

    def ratio(self, other: Contender, what: str) -> float:
        """Median of the ratios within a round: what slows a machine down slows neighbours alike."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(getattr(mine, what) / getattr(theirs, what) for mine, theirs in pairs)


class MdiProcess:
    """A starter in a process of its own (see `tools/mdi_child.py`)."""

    def __init__(self, home: Path, model: Path, *, threads: int, cores: str, **options: Any) -> None:
        command = [sys.executable, "-m", "tools.mdi_child", "--home", str(home), "--model", str(model)]
        command += ["--threads", str(threads), "--cores", cores]
        for name, value in options.items():
            for each in value if isinstance(value, (list, tuple)) else [value]:
                command.append(f"--{name.replace('_', '-')}={each}")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._read()

    def measure(self, prompt_tokens: int, new_tokens: int, conversations: int = 1) -> Rates:
        assert self._process.stdin is not None
        request = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "conversations": conversations}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._read()
        return Rates(prompt_tokens / reply["ttft_s"], reply["decode_tokens_per_s"])

    @property
    def predicted_tokens_per_s(self) -> float:
        return float(self.facts["plan"]["prediction"]["decode_tokens_per_s"])

    @property
    def peak_rss_bytes(self) -> int:
        return peak_rss_bytes(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ClusterError("the starter's process has ended", hint="see its messages above")
        reply: dict[str, Any] = json.loads(line)
        return reply


@contextmanager
def node(home: Path, port: int, cores: str, threads: int = 1) -> Iterator[int]:
    """A real daemon, pinned; yields its process id."""
    command = [sys.executable, "-m", "tools.mdi_node", "--home", str(home), "--port", str(port), "--cores", cores]
    process = subprocess.Popen([*command, "--threads", str(threads), "--name", home.name], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise ClusterError("a node did not start", hint="see its messages above")
        yield process.pid
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)
        process.stdout.close()


def compete(contenders: list[Contender], rounds: int, prompt_tokens: int, new_tokens: int) -> None:
    """Every contender once per round, in an order that turns, after one warm-up each."""
    for contender in contenders:
        contender.measure(prompt_tokens, 4)
    for i in range(rounds):
        for contender in contenders[i % len(contenders) :] + contenders[: i % len(contenders)]:
            contender.rounds.append(contender.measure(prompt_tokens, new_tokens))


def llama(engine: LlamaCpp) -> Measure:
    def measure(prompt_tokens: int, new_tokens: int) -> Rates:
        timing = engine.measure(prompt_tokens, new_tokens)
        return Rates(timing.prefill_tokens_per_s, timing.decode_tokens_per_s)

    return measure


class Bench:
    """The files that all parts share, and what was measured."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self._args = args
        self._scratch = scratch
        self._console = Console()
        name = args.shape + (f"-v{args.vocab}" if args.vocab else "")
        self.model: Path = args.directory / name
        self.gguf: Path = args.directory / f"{name}-q4_0.gguf"
        self.results: dict[str, Any] = {"cores": len(available_cores()), "shape": args.shape, "vocab": args.vocab}
        args.directory.mkdir(parents=True, exist_ok=True)
        shape = named_shape(args.shape, vocab=args.vocab)
        if not self.model.exists():
            make_checkpoint(shape, self.model)
        if args.llama and not self.gguf.exists():
            make_gguf(shape, self.gguf)
        self._key = ClusterKey.generate()
        self._packs = args.directory / f"{name}-packs"

    def home(self, name: str) -> Path:
        """A node's directory; the starters' packs are made once and shared by all runs."""
        home = Home(self._scratch / name)
        if not home.path.exists():
            home.create()
            self._key.save(home)
            self._packs.mkdir(exist_ok=True)
            home.packs_path.rmdir()
            home.packs_path.symlink_to(self._packs)
        return home.path

    def single(self, threads: int) -> None:
        """(a): one process, as many threads as llama.cpp."""
        args = self._args
        cores = ",".join(str(core) for core in available_cores()[:threads])
        with ExitStack() as stack:
            contenders = []
            for block in args.blocks:
                home = self.home(f"single-{threads}-{block}")
                options = {"threads": threads, "cores": cores, "block": block, "quant": args.quant}
                process = stack.enter_context(MdiProcess(home, self.model, **options))
                contenders.append(Contender(f"mdi int4, block {block}", process.measure))
            if args.llama:
                engine = stack.enter_context(LlamaCpp(self.gguf, threads, context_tokens=args.prompt + args.new + 8))
                contenders.append(Contender("llama.cpp Q4_0", llama(engine)))
            compete(contenders, args.rounds, args.prompt, args.new)
        self._report(f"one process, {threads} thread(s)", contenders, contenders[-1])

    def pair(self) -> None:
        """(b): two nodes of one thread each, and rivals on the same two cores."""
        args, (first, second) = self._args, available_cores()[:2]
        n_blocks = named_shape(args.shape, vocab=args.vocab).blocks
        half = n_blocks // 2
        with ExitStack() as stack:
            a, b = self.home("a"), self.home("b")
            stack.enter_context(node(a, PORTS, str(first)))
            pid = stack.enter_context(node(b, PORTS + 1, str(second)))
            idle, peer = peak_rss_bytes(pid), f"127.0.0.1:{PORTS + 1}"
            common = {"threads": 1, "cores": str(first), "block": args.blocks[-1], "quant": args.quant}
            alone = stack.enter_context(MdiProcess(self.home("alone"), self.model, **common))
            over_two = {"split": f"{n_blocks - half},{half}", "peer": [peer], "slots": 2, **common}
            with MdiProcess(a, self.model, **over_two):
                pass  # measuring the nodes takes memory, once; what a stage takes is asked for here
            reset_peak_rss(pid)
            ring = stack.enter_context(MdiProcess(a, self.model, **over_two))
            ring.measure(args.prompt, args.new, 2)
            self._report_memory("the second node", pid, half, idle, slots=2)
            workers = stack.enter_context(
                MdiProcess(
                    self.home("third"),
                    self.model,
                    split=f"0,{n_blocks - half},{half}",
                    peer=[f"127.0.0.1:{PORTS}", peer],
                    **common,
                )
            )
            contenders = [
                Contender("mdi, one process", alone.measure),
                Contender("mdi, starter's node + 1 node", ring.measure),
                Contender("mdi, starter + 2 nodes with all blocks", workers.measure),
                Contender("mdi, starter's node + 1 node, 2 conversations", lambda p, n: ring.measure(p, n, 2)),
            ]
            if args.llama and args.rpc:
                servers = stack.enter_context(rpc_workers(2, threads=1))
                rpc = stack.enter_context(LlamaCpp(self.gguf, 1, rpc=servers, context_tokens=args.prompt + args.new + 8))
                contenders.append(Contender("llama.cpp RPC, 2 workers", llama(rpc)))
            compete(contenders, args.rounds, args.prompt, args.new)
            self._report("two nodes, one thread each", contenders, contenders[0])
            self._report_prediction(ring, contenders[1])

    def house(self) -> None:
        """(c): three daemons; the starter belongs to the first, and the planner decides who holds what."""
        args, cores = self._args, available_cores()
        with ExitStack() as stack:
            homes = [self.home(name) for name in HOUSE]
            pids = [
                stack.enter_context(node(home, PORTS + i, str(cores[i % len(cores)]), threads=1))
                for i, home in enumerate(homes)
            ]
            idle = peak_rss_bytes(pids[-1])
            over_all = {
                "threads": 1,
                "cores": str(cores[0]),
                "block": args.blocks[-1],
                "quant": args.quant,
                "peer": [f"127.0.0.1:{PORTS + i}" for i in range(1, len(HOUSE))],
                "min_nodes": len(HOUSE),
                "objective": "throughput",  # among equal nodes every split is as fast; this one gives each a fair share
            }
            with MdiProcess(homes[0], self.model, **over_all):
                pass  # as in `pair`
            for pid in pids:
                reset_peak_rss(pid)
            starter = stack.enter_context(MdiProcess(homes[0], self.model, **over_all))
            contender = Contender("mdi, three nodes", starter.measure)
            compete([contender], args.rounds, args.prompt, args.new)
            self._report("three nodes, one thread each", [contender], contender)
            self._report_prediction(starter, contender)
            stages = starter.facts["plan"]["stages"]
            for stage, pid in zip(stages[1:], (pids[HOUSE.index(stage["name"])] for stage in stages[1:]), strict=True):
                self._report_memory(stage["name"], pid, stage["stop"] - stage["start"], idle, slots=1)
            resident = sum(peak_rss_bytes(pid) for pid in pids) + starter.peak_rss_bytes
            self._tell("peak resident memory of all", f"{resident / 2**30:.2f} GiB", resident)

    def _report_prediction(self, starter: MdiProcess, measured: Contender) -> None:
        split = ",".join(str(stage["stop"] - stage["start"]) for stage in starter.facts["plan"]["stages"])
        predicted, found = starter.predicted_tokens_per_s, measured.median("decode_tokens_per_s")
        ratio = predicted / found
        self._tell(
            f"{measured.name}, blocks {split}: predicted / measured", f"{predicted:.2f} / {found:.2f} = {ratio:.3f}", ratio
        )

    def _report_memory(self, name: str, pid: int, n_blocks: int, idle: int, *, slots: int) -> None:
        """Of a worker: what its stage takes at most, beside the weights and the KV that this benchmark writes."""
        config, args = read_config(self.model), self._args
        weights = n_blocks * packed_bytes(config, WeightFormat(4, args.blocks[-1]))[0]
        kv = StageShape(slots, args.prompt + args.new, 1).kv_bytes(config, n_blocks)
        peak = peak_rss_bytes(pid)
        ratio = (peak - idle) / (weights + kv)
        shown = f"({peak >> 20} - {idle >> 20} MiB of an idle node) / ({weights >> 20} + {kv >> 20} MiB) = {ratio:.3f}"
        self._tell(f"{name}, {n_blocks} blocks: peak resident / (weights + KV)", shown, ratio)

    def _tell(self, what: str, shown: str, value: float) -> None:
        self.results[what] = value
        self._console.print(f"{what}: {shown}")

    def _report(self, title: str, contenders: list[Contender], base: Contender) -> None:
        table = Table("", "decode tok/s", "ratio", "prefill tok/s", "ratio", title=f"{title}; ratios to {base.name}")
        rows = {}
        for contender in contenders:
            row = {}
            for what in ("decode_tokens_per_s", "prefill_tokens_per_s"):
                row[what] = round(contender.median(what), 2)
                row[f"{what[:-13]}_ratio"] = round(contender.ratio(base, what), 3)
            rows[contender.name] = row
            table.add_row(contender.name, *(str(value) for value in row.values()))
        self.results[title] = rows
        self._console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--vocab", type=int, help="a smaller vocabulary, such as 32000")
    parser.add_argument("--directory", type=Path, default=Path(platformdirs.user_cache_dir("mdi-bench")))
    parser.add_argument("--blocks", type=int, nargs="+", default=[128, 256], help="quantisation block sizes")
    parser.add_argument("--quant", default="int4", help="what MDI makes of the random weights; int4-plain is made fastest")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=["single", "pair"])
    parser.add_argument("--no-llama", dest="llama", action="store_false", help="leave out llama.cpp")
    parser.add_argument("--no-rpc", dest="rpc", action="store_false", help="leave out llama.cpp's RPC backend")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the nodes' gRPC core would write of every certificate that is looked at
    try:
        with tempfile.TemporaryDirectory(prefix="mdi-bench-") as scratch:
            bench = Bench(args, Path(scratch))
            for threads in args.threads if "single" in args.parts else ():
                bench.single(threads)
            if "pair" in args.parts:
                bench.pair()
            if "house" in args.parts:
                bench.house()
    except MdiError as error:
        return exit_with_error(error)
    if args.json:
        args.json.write_text(json.dumps(bench.results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
