"""llama.cpp as the measured baseline, on this machine's cores and over its own RPC, through llama-cpp-python.

    with LlamaCpp(path, threads=2) as llama:
        timing = llama.measure(prompt_tokens=128, new_tokens=64)

The model runs in a process of its own, pinned to cores, and stays loaded between measurements, so that a benchmark can
take turns between engines. Settings: mmap, batches of 512, head for the last row only, greedy, one warm-up.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mdi.errors import ClusterError, MdiError, UserError
from tools.make_checkpoint import exit_with_error
from tools.shapes import SHAPES, named_shape

LOAD_TIMEOUT_S = 300.0  # 4 GB over RPC on loopback take half a minute
MEASURE_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 10.0
RPC_START_TIMEOUT_S = 30.0
QUANTISED = {"q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}  # llama_ftype
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
INSTALL = 'CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_RPC=ON" pip install --no-binary llama-cpp-python llama-cpp-python'


@dataclass(frozen=True, slots=True)
class Timing:
    """One measurement; `peak_rss_bytes` adds up the model's process and its RPC workers, mapped file pages included."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class RpcWorker:
    endpoint: str  # host:port
    pid: int


class LlamaCpp:
    """llama.cpp with one model in a process of its own; a context manager. `facts` says which build and CPU features."""

    def __init__(
        self,
        gguf: Path,
        threads: int,
        *,
        rpc: Sequence[RpcWorker] = (),
        context_tokens: int = 1024,
        sequences: int = 1,
        flash_attention: str = "auto",
        cores: Sequence[int] | None = None,
    ) -> None:
        """Room for `sequences` of `context_tokens` each.

        `cores` default to the first `threads` that this process may use, or to all of them where RPC workers compute.
        """
        if not gguf.exists():
            raise UserError(f"{gguf} does not exist", hint="python -m tools.make_gguf SHAPE FILE")
        self._rpc = tuple(rpc)
        self._context_tokens = context_tokens
        cores = cores or (available_cores() if rpc else available_cores()[:threads])
        command = ["model", str(gguf), "--context-tokens", str(context_tokens)]
        command += ["--sequences", str(sequences), "--flash-attention", str(FLASH_ATTENTION[flash_attention])]
        command += ["--rpc", *(worker.endpoint for worker in rpc)]
        start = time.perf_counter()
        self._process = _start_child(threads, cores, command)
        try:
            self.facts: dict[str, Any] = self._read(LOAD_TIMEOUT_S)
            self.start_s = time.perf_counter() - start
        except BaseException:
            self.close()
            raise

    def measure(self, prompt_tokens: int, new_tokens: int, sequences: int = 1) -> Timing:
        """Prefill of a random prompt, then `new_tokens` greedy steps; of several sequences at once, and their rates together.

        Raises `ClusterError` where the process failed.
        """
        if prompt_tokens + new_tokens > self._context_tokens:
            raise UserError(f"{prompt_tokens + new_tokens} tokens do not fit a context of {self._context_tokens}")
        assert self._process.stdin is not None
        try:
            request = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "sequences": sequences}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ClusterError("llama.cpp's process has ended", hint="see its messages above") from error
        seconds = self._read(MEASURE_TIMEOUT_S)
        pids = [self._process.pid, *(worker.pid for worker in self._rpc)]
        return Timing(
            prefill_tokens_per_s=sequences * prompt_tokens / seconds["prefill_s"],
            decode_tokens_per_s=sequences * new_tokens / seconds["decode_s"],
            peak_rss_bytes=sum(peak_rss_bytes(pid) for pid in pids),
        )

    @property
    def peak_rss_bytes(self) -> int:
        """Of the model's own process."""
        return peak_rss_bytes(self._process.pid)

    def close(self) -> None:
        _stop_child(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise ClusterError(f"llama.cpp did not answer within {timeout_s:.0f} s", hint="choose a smaller model")
        line = self._process.stdout.readline()
        if not line:
            raise ClusterError("llama.cpp's process has ended", hint="see its messages above")
        reply: dict[str, Any] = json.loads(line)
        return reply


@contextmanager
def rpc_workers(count: int, *, threads: int = 1) -> Iterator[list[RpcWorker]]:
    """`count` RPC servers on loopback, each a process on `threads` cores of its own; they end with the block."""
    cores = available_cores()
    if count * threads > len(cores):
        raise UserError(
            f"{count} workers of {threads} threads need more than the {len(cores)} cores here", hint="fewer workers"
        )
    with ExitStack() as stack:
        workers = []
        for i in range(count):
            port = _free_port()
            own_cores = cores[i * threads : (i + 1) * threads]
            process = _start_child(threads, own_cores, ["rpc-worker", f"127.0.0.1:{port}"])
            stack.callback(_stop_child, process)
            _wait_for_port(port, process)
            workers.append(RpcWorker(f"127.0.0.1:{port}", process.pid))
        yield workers


def decode_rate(gguf: Path, threads: int, prompt_tokens: int, new_tokens: int, rpc: Sequence[RpcWorker] = ()) -> Timing:
    """Loads, measures once and ends."""
    with LlamaCpp(gguf, threads, rpc=rpc, context_tokens=prompt_tokens + new_tokens) as llama:
        return llama.measure(prompt_tokens, new_tokens)


def rpc_decode_rate(gguf: Path, prompt_tokens: int, new_tokens: int, *, workers: int = 2, threads: int = 1) -> Timing:
    """The same with the blocks in `workers` RPC servers of `threads` threads each; the head is in the last one."""
    with rpc_workers(workers, threads=threads) as servers:
        return decode_rate(gguf, 1, prompt_tokens, new_tokens, rpc=servers)


def quantise(source: Path, target: Path, kind: str, threads: int) -> None:
    """Writes `target` as llama.cpp itself makes a file of `kind`, one of `QUANTISED`, from the GGUF file `source`.

    Raises `ClusterError` where it failed.
    """
    process = _start_child(threads, available_cores()[:threads], ["quantise", str(source), str(target), str(QUANTISED[kind])])
    try:
        if process.wait():
            raise ClusterError(f"llama.cpp made no {kind} of {source}", hint="see its messages above")
    finally:
        _stop_child(process)


def available_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def peak_rss_bytes(pid: int) -> int:
    """The most resident memory that process `pid` ever had (Linux: `VmHWM`, in KiB)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


def reset_peak_rss(pid: int) -> None:
    """Lets `peak_rss_bytes` count from now on (Linux)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def _start_child(threads: int, cores: Sequence[int], arguments: list[str]) -> subprocess.Popen[str]:
    if importlib.util.find_spec("llama_cpp") is None:
        raise UserError("llama-cpp-python is not installed", hint=INSTALL)
    pinned = ["--threads", str(threads), "--cores", ",".join(map(str, cores))]
    return subprocess.Popen(
        [sys.executable, "-m", "tools.llama_cpp_child", *pinned, *arguments],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _stop_child(process: subprocess.Popen[str]) -> None:
    """Children end when their input does; one that hangs in the library is killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int, process: subprocess.Popen[str]) -> None:
    """Until the server accepts; it serves one client at a time, so the probe closes at once."""
    deadline = time.monotonic() + RPC_START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise ClusterError("llama.cpp's RPC server did not start", hint=INSTALL)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.llama_cpp", description=__doc__.split("\n")[0] if __doc__ else None)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf", type=Path, help="a model to measure")
    source.add_argument("--shape", choices=SHAPES, help="or a shape to make with random weights first")
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--quantisation", default="q4_0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rpc-workers", type=int, default=0, help="split over so many RPC servers of --threads threads each")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--flash-attention", choices=FLASH_ATTENTION, default="auto")
    args = parser.parse_args(argv)
    try:
        with ExitStack() as stack:
            gguf = args.gguf or _make(args, Path(stack.enter_context(tempfile.TemporaryDirectory())))
            workers = stack.enter_context(rpc_workers(args.rpc_workers, threads=args.threads)) if args.rpc_workers else []
            llama = stack.enter_context(
                LlamaCpp(
                    gguf,
                    1 if workers else args.threads,
                    rpc=workers,
                    context_tokens=args.prompt_tokens + args.new_tokens,
                    flash_attention=args.flash_attention,
                )
            )
            timings = [asdict(llama.measure(args.prompt_tokens, args.new_tokens)) for _ in range(args.repeat)]
            settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
            print(json.dumps({"settings": settings, "llama_cpp": llama.facts, "timings": timings}, indent=2))
    except MdiError as error:
        return exit_with_error(error)
    return 0


def _make(args: argparse.Namespace, directory: Path) -> Path:
    from tools.make_gguf import make_gguf

    shape = named_shape(args.shape, vocab=args.vocab, blocks=args.blocks)
    return make_gguf(shape, directory / f"{args.shape}.gguf", quantisation=args.quantisation).path


if __name__ == "__main__":
    sys.exit(main())
