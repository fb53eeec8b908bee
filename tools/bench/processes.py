"""Processes of MDI that a benchmark starts and asks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from mdi.errors import ClusterError, UserError
from tools.bench.rates import Rates
from tools.llama_cpp import peak_rss_bytes

START_TIMEOUT_S = 60.0


class Child:
    """A process that answers a line with a line, and ends when its input does."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


class MdiProcess(Child):
    """A starter in a process of its own (see `tools/mdi_child.py`)."""

    def __init__(self, home: Path, model: Path, *, threads: int, cores: str, **options: Any) -> None:
        command = [sys.executable, "-m", "tools.mdi_child", "--home", str(home), "--model", str(model)]
        command += ["--threads", str(threads), "--cores", cores]
        for name, value in options.items():
            for each in value if isinstance(value, (list, tuple)) else [value]:
                command.append(f"--{name.replace('_', '-')}={each}")
        start = time.perf_counter()
        super().__init__(command)
        self.facts = self._read()
        self.start_s = time.perf_counter() - start

    def measure(self, prompt_tokens: int, new_tokens: int, conversations: int = 1) -> Rates:
        reply = self._ask(prompt_tokens, new_tokens, conversations)
        return Rates(prompt_tokens / reply["ttft_s"], reply["decode_tokens_per_s"])

    def measure_together(self, prompt_tokens: int, new_tokens: int, conversations: int) -> Rates:
        """`decode_tokens_per_s` of all conversations together while none has a prompt to read. Prompts come at once."""
        reply = self._ask(prompt_tokens, new_tokens, conversations)
        if reply["together_tokens_per_s"] is None:
            raise UserError(f"answers of {new_tokens} tokens are over before all have begun", hint="a larger --new")
        return Rates(conversations * prompt_tokens / reply["ttft_s"], reply["together_tokens_per_s"])

    def _ask(self, prompt_tokens: int, new_tokens: int, conversations: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        request = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "conversations": conversations}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    @property
    def predicted_tokens_per_s(self) -> float:
        return float(self.facts["plan"]["prediction"]["decode_tokens_per_s"])

    @property
    def peak_rss_bytes(self) -> int:
        return peak_rss_bytes(self._process.pid)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ClusterError("the starter's process has ended", hint="see its messages above")
        reply: dict[str, Any] = json.loads(line)
        return reply


class Reader(Child):
    """Reads memory as fast as it can, in a process of its own (see `tools/bench/reader.py`)."""

    def __init__(self, threads: int, cores: str) -> None:
        command = [sys.executable, "-m", "tools.bench.reader", "--threads", str(threads), "--cores", cores]
        super().__init__(command)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def measure(self) -> float:
        """Bytes per second of one pass over a buffer that no cache holds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline())["bytes_per_s"])


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
