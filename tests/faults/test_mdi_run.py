"""`mdi run` while a worker dies: the same text, and one line about it; and exit code 1 when nobody can hold the model."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest

from tests.cli.programs import started
from tests.faults.conftest import CTX, PROMPT, Nodes

TIMEOUT_S = 60.0
pytestmark = pytest.mark.timeout(240)


def arguments(nodes: Nodes, *more: str, name: str = "one") -> tuple[str, ...]:
    node = nodes.get(name)
    return ("run", "--raw", "-p", PROMPT, "--max-tokens", "150", "--ignore-eos", "--ctx", str(CTX), "--threads", "1",
            "--no-discovery", "--wait", "0.1", "--peer", node.address, *more)  # fmt: skip


def end_of(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    out, err = process.communicate(timeout=TIMEOUT_S)
    return out, err, process.returncode


def killed_in_the_middle(nodes: Nodes, *more: str) -> tuple[str, str, int]:
    """The node dies when the first character of the answer is there."""
    with started(nodes.house.home("starter"), *arguments(nodes, *more)) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        nodes.get("one").signal(signal.SIGKILL)
        out, err, code = end_of(process)
        return first + out, err, code


def test_the_text_is_the_same_and_one_line_tells_of_it(nodes: Nodes) -> None:
    with started(nodes.house.home("starter"), *arguments(nodes, "--min-nodes", "2")) as process:
        undisturbed, _, code = end_of(process)
    assert code == 0
    text, err, code = killed_in_the_middle(nodes, "--min-nodes", "2")
    assert (text, code) == (undisturbed, 0)
    told = [line for line in err.splitlines() if "one" in line.split()]
    assert told[0] == "one does not answer any more; this device goes on alone"


async def test_exit_code_1_and_what_is_missing_when_nobody_can_hold_the_model(nodes: Nodes) -> None:
    async with nodes.starter("one", n_slots=1) as starter:
        most = starter.problem.bytes_needed(0, 4)
    _, err, code = killed_in_the_middle(nodes, "--max-memory", f"{most}B")
    assert code == 1
    assert re.search(r"mdi: only 4 of 10 blocks fit: .* of memory are missing\none does not answer\n", err)


MORTAL = """
import os, signal
import mdi.node.stage as stage
compute, steps = stage.LoadedStage.compute, 0
def computed(self, data):
    global steps
    steps += 1
    if steps == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, data)
stage.LoadedStage.compute = computed
"""


def test_json_lists_the_recoveries(nodes: Nodes) -> None:
    told = []
    for name, before in (("one", ""), ("mortal", MORTAL)):
        nodes.get(name, before=before)
        with started(nodes.house.home("starter"), *arguments(nodes, "--min-nodes", "2", "--json", name=name)) as process:
            out, err, code = end_of(process)
        assert (code, err) == (0, "")
        told.append(json.loads(out))
    undisturbed, recovered = told
    assert recovered["token_ids"] == undisturbed["token_ids"]
    assert undisturbed["recoveries"] == []
    (recovery,) = recovered["recoveries"]
    assert recovery["node"] == "mortal"
    assert "mortal cannot be reached" in recovery["reason"]
    assert 0 < recovery["seconds"] < TIMEOUT_S
