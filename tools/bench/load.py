"""Parts `load` and `convert`: how long a start from cached packs takes and what memory it needs, and how packs are made."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import ModelError
from tools.bench.bandwidth import weight_bytes
from tools.bench.bench import Bench
from tools.bench.processes import MdiProcess
from tools.bench.rates import turned
from tools.llama_cpp import LlamaCpp, available_cores


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds until a process is ready for the first prompt, and the most resident memory once it has answered one."""

    start_s: float
    peak_bytes: int


def starts(bench: Bench, threads: int) -> None:
    """Each engine started anew in turn, first with its files in the page cache, then with them only on disk."""
    args = bench.args
    cores = ",".join(map(str, available_cores()[:threads]))
    home, block = bench.home("load"), args.blocks[-1]
    options = {"threads": threads, "cores": cores, "quant": args.quant, "block": block, "ctx": args.prompt + args.new + 8}

    def mdi() -> Start:
        with MdiProcess(home, bench.model, **options) as process:
            process.measure(args.prompt, args.new)
            return Start(process.start_s, process.peak_rss_bytes)

    def llama_cpp() -> Start:
        with LlamaCpp(bench.gguf(), threads, context_tokens=args.prompt + args.new + 8) as engine:
            engine.measure(args.prompt, args.new)
            return Start(engine.start_s, engine.peak_rss_bytes)

    mdi()  # makes the packs, measures the device
    llama_cpp()
    needed = weight_bytes(bench, block) + bench.kv_bytes(bench.shape.blocks)
    engines = {"mdi": mdi, "llama.cpp": llama_cpp}
    for where, forget in (("in the page cache", False), ("on the disk", True)):
        found = _alternate(engines, args.rounds, [(home / "packs").resolve(), bench.gguf()] if forget else [])
        for name, rounds in found.items():
            seconds = statistics.median(each.start_s for each in rounds)
            bench.tell(f"{name}: start to ready, files {where}", f"{seconds:.2f} s", seconds)
    for name, rounds in found.items():
        peak = statistics.median(each.peak_bytes for each in rounds)
        ratio = peak / needed
        shown = f"{int(peak) >> 20} MiB / {needed >> 20} MiB = {ratio:.3f}"
        bench.tell(f"{name}: peak resident / (int4 weights + KV)", shown, ratio)


def conversions(bench: Bench) -> None:
    """Packs from the checkpoint, each time in a new place and from a page cache that may hold the checkpoint."""
    for quant in bench.args.conversions:
        packs = bench.home(f"convert-{quant}", shared_packs=False) / "packs"
        command = [sys.executable, "-m", "tools.bench.convert", str(bench.model), str(packs), "--quant", quant]
        command += ["--block", str(bench.args.blocks[-1])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise ModelError(f"{bench.model} was not converted", hint="see the messages above")
        reply = json.loads(done.stdout)
        shown = f"{reply['seconds']:.1f} s, {reply['checkpoint_bytes'] / 1e9 / reply['seconds']:.2f} GB/s"
        bench.tell(f"conversion to {quant}", shown, reply["seconds"])
        bench.tell(f"conversion to {quant}: peak resident", f"{reply['peak_bytes'] >> 20} MiB", reply["peak_bytes"])
        for pack in packs.iterdir():
            pack.unlink()


def _alternate(engines: dict[str, Callable[[], Start]], rounds: int, forgotten: Iterable[Path]) -> dict[str, list[Start]]:
    found: dict[str, list[Start]] = {name: [] for name in engines}
    for i in range(rounds):
        for name in turned(list(engines), i):
            for path in forgotten:
                forget(path)
            found[name].append(engines[name]())
    return found


def forget(path: Path) -> None:
    """Drops a file, or every file in a directory, from the page cache. Pages that somebody has mapped stay."""
    for each in path.iterdir() if path.is_dir() else [path]:
        file = os.open(each, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
