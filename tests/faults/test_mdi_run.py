"""`mdi run` while a worker dies: the same text, and one line about it; and exit code 1 when nobody can hold the model."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.programs import started
from tests.faults.conftest import CTX, PROMPT, Nodes

TIMEOUT_S = 60.0
pytestmark = pytest.mark.timeout(240)


# What a worker's process runs first: it dies in its 12th step.
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


def run(nodes: Nodes, *more: str, mortal: bool) -> tuple[str, str, int]:
    """stdout, stderr and exit code of an answer with one worker, which dies on the way or does not."""
    node = nodes.get("mortal", before=MORTAL) if mortal else nodes.get("one")
    arguments = ("run", "--raw", "-p", PROMPT, "--max-tokens", "60", "--ignore-eos", "--no-speculation", "--ctx", str(CTX),
                 "--threads", "1", "--no-discovery", "--wait", "0.1", "--peer", node.address, *more)  # fmt: skip
    with started(nodes.house.home("starter"), *arguments) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
        return out, err, process.returncode


def test_the_text_is_the_same_and_one_line_tells_of_it(nodes: Nodes) -> None:
    undisturbed, _, code = run(nodes, "--min-nodes", "2", mortal=False)
    assert code == 0
    text, err, code = run(nodes, "--min-nodes", "2", mortal=True)
    assert (text, code) == (undisturbed, 0)
    assert [line for line in err.splitlines() if "mortal" in line] == [
        "mortal does not answer any more; this device goes on alone"
    ]


async def test_exit_code_1_and_what_is_missing_when_nobody_can_hold_the_model(nodes: Nodes) -> None:
    async with nodes.starter("one", n_slots=1) as starter:
        most = starter.problem.bytes_needed(0, 4)
    _, err, code = run(nodes, "--max-memory", f"{most}B", mortal=True)
    assert code == 1
    assert re.search(r"mdi: only 4 of 10 blocks fit: .* of memory are missing\nmortal does not answer\n", err)


def test_json_lists_the_recoveries(nodes: Nodes) -> None:
    told = []
    for mortal in (False, True):
        out, err, code = run(nodes, "--min-nodes", "2", "--json", mortal=mortal)
        assert (code, err) == (0, "")
        told.append(json.loads(out))
    undisturbed, recovered = told
    assert recovered["token_ids"] == undisturbed["token_ids"]
    assert undisturbed["recoveries"] == []
    (recovery,) = recovered["recoveries"]
    assert recovery["node"] == "mortal"
    assert "mortal cannot be reached" in recovery["reason"]
    assert 0 < recovery["seconds"] < TIMEOUT_S
