"""The starter's process in a testbed (see `child.py`), asked from outside."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from mdi.errors import ClusterError
from mdi.model.quantise import Quant
from tools.bench_plan.figures import Figures
from tools.bench_plan.layouts import Layout
from tools.testbed.bed import Testbed

REPLY_TIMEOUT_S = 240.0  # profiling four nodes at a quarter of a core for a new model takes half a minute
END_TIMEOUT_S = 20.0


class RingStarter:
    """A context: the process runs on the bed's first node, within its limits. Only one ring is open at a time.

    Every call raises ClusterError with what the starter said when it failed, or when it does not answer.
    """

    def __init__(self, bed: Testbed, model: Path, *, quant: Quant, ctx: int, slots: int = 1) -> None:
        command = [sys.executable, "-m", "tools.bench_plan.child", "--model", str(model), "--quant", quant.value]
        command += ["--ctx", str(ctx), "--slots", str(slots), *(f"--peer={peer}" for peer in peers_of(bed))]
        self._process = bed.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.layout: Layout | None = None  # of the ring that answered last
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def plan(self, *objectives: str, min_nodes: int = 1, refresh: bool = False) -> dict[str, Any]:
        """See `Service.plan`; layouts as such, None for an alternative that does not fit."""
        reply = self._ask(do="plan", objectives=objectives, min_nodes=min_nodes, refresh=refresh)
        for key in ("plans", "alternatives"):
            reply[key] = {name: parts and Layout.from_json(parts) for name, parts in reply[key].items()}
        return reply

    def open(
        self, layout: Layout, prompt_tokens: int, new_tokens: int, conversations: int = 1
    ) -> tuple[Figures, dict[str, Any]]:
        """What the ring promises, in all and by its parts."""
        sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "conversations": conversations}
        reply = self._ask(do="open", layout=layout.parts, **sizes)
        return _figures(reply), reply

    def measure(self, prompt_tokens: int, new_tokens: int, conversations: int = 1) -> Figures:
        sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "conversations": conversations}
        reply = self._ask(do="measure", **sizes)
        self.layout = Layout.from_json(reply["layout"])
        return _figures(reply)

    def close(self) -> None:
        """Frees the ring that is open."""
        self._ask(do="close")

    def _ask(self, **request: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(REPLY_TIMEOUT_S):
                raise ClusterError(
                    f"the starter did not answer within {REPLY_TIMEOUT_S:g} s", hint="is the machine overloaded?"
                )
        line = self._process.stdout.readline()
        if not line:
            raise ClusterError("the starter's process has ended", hint="see its messages above")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise ClusterError(reply["error"])
        return reply


def peers_of(bed: Testbed) -> list[str]:
    """The addresses of all nodes but the first, as `--peer` takes them."""
    return [f"{bed.spec.address(node)}:{_port(bed, node.name)}" for node in bed.spec.nodes[1:]]


def _port(bed: Testbed, node: str) -> int:
    running = bed.home(node).running()
    if running is None:
        raise ClusterError(f"node {node} has ended:\n{bed.log(node)}")
    return running.port


def _figures(reply: dict[str, Any]) -> Figures:
    return Figures(reply["decode_tokens_per_s"], reply["ttft_s"], reply["together_tokens_per_s"])
