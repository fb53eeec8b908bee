"""Two emulated processes: a daemon, and a starter that gives it int4 blocks of the built-in model and asks a question."""

from __future__ import annotations

import json
import selectors
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.errors import ClusterError
from tools.arm64.emulator import Emulator
from tools.arm64.wheels import ROOT

START_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 1200.0  # measuring blocks, links and answering: about a minute where nothing else computes
QUESTION, EXPECTED = "What is the capital of France?", "Paris"
# Bit 20 of AT_HWCAP (asm/hwcap.h): the dot-product instructions that a Pi 4 lacks and a Pi 5 has.
HAS_DOT_PRODUCT = "import ctypes; print(ctypes.CDLL(None).getauxval(16) >> 20 & 1)"


@dataclass(frozen=True, slots=True)
class Outcome:
    dot_product: bool
    text: str
    worker_blocks: int
    seconds: float


def answer_on(emulator: Emulator, cpu: str) -> Outcome:
    """Raises ClusterError if the cluster does not start, or does not answer."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mdi-arm64-") as directory:
        one, two = (Home(Path(directory) / name).create() for name in ("one", "two"))
        key = ClusterKey.generate()
        key.save(one)
        key.save(two)
        node = _mdi(emulator, cpu, one, "node", "start", "--host", "127.0.0.1", "--no-discovery", "--threads", "1")
        with subprocess.Popen(node, stdout=subprocess.PIPE, text=True) as daemon:
            try:
                _wait_for_line(daemon)
                running = one.running()
                if running is None:
                    raise ClusterError("the emulated daemon says that it runs, but does not")
                peer = ("--no-discovery", "--peer", f"127.0.0.1:{running.port}", "--min-nodes", "2", "--threads", "1")
                run = ("run", "--model", "demo", "--quant", "int4", *peer, "--json", "--prompt", QUESTION)
                done = subprocess.run(
                    _mdi(emulator, cpu, two, *run), capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
                )
                if done.returncode != 0:
                    raise ClusterError(f"the emulated starter ended with {done.returncode}: {done.stderr[-500:]}")
            finally:
                daemon.kill()
    answer = json.loads(done.stdout)
    blocks = sum(stage["stop"] - stage["start"] for stage in answer["plan"]["stages"][1:])
    dot = subprocess.run(emulator.command(cpu, {}, "-S", "-c", HAS_DOT_PRODUCT), capture_output=True, text=True, check=True)
    return Outcome(dot.stdout.strip() == "1", answer["text"], blocks, time.monotonic() - began)


def _mdi(emulator: Emulator, cpu: str, home: Home, *arguments: str) -> list[str]:
    environment = {"PYTHONPATH": f"{emulator.site}:{ROOT}", "MDI_HOME": str(home.path)}
    return emulator.command(cpu, environment, "-m", "mdi.cli.app", *arguments)


def _wait_for_line(daemon: subprocess.Popen[str]) -> None:
    assert daemon.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(daemon.stdout, selectors.EVENT_READ)
        if not selector.select(START_TIMEOUT_S) or not daemon.stdout.readline():
            raise ClusterError("the emulated daemon did not start")
