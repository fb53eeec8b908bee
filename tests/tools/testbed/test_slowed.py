"""A node that a quota slows while `mdi run` talks: real namespaces, control groups and daemons. Skipped where they are not allowed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tools.testbed.bed import Testbed
from tools.testbed.machine import Machine
from tools.testbed.spec import BedSpec, NodeSpec

QUESTION = "What is the capital of France?"
DEADLINE_S = 240.0  # of what takes some ten seconds of traffic
SLOWED = re.compile(
    r"(?P<slow>kitchen|attic|the network)[^\n]* slowed to 0\.\d+x[^\n]*; 10 blocks move to (?P<to>kitchen|attic): "
)


@pytest.fixture
def bed(machine: Machine) -> Iterator[Testbed]:
    if machine.control_groups is None:
        pytest.skip("no control groups here")
    nodes = tuple(NodeSpec(name, threads=1) for name in ("desk", "kitchen", "attic"))
    with Testbed(BedSpec(f"s{os.getpid()}", nodes), machine) as bed:
        yield bed


class Talk:
    """`mdi run` on the starter, over pipes: what it wrote so far on either."""

    def __init__(self, bed: Testbed, *arguments: str) -> None:
        pipe = subprocess.PIPE
        command = (sys.executable, "-m", "mdi.cli.app", "run", "--no-speculation", *arguments)
        self.process = bed.popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.answers: list[str] = []
        self.told: list[str] = []
        self._changed = threading.Condition()
        for stream, lines in ((self.process.stdout, self.answers), (self.process.stderr, self.told)):
            threading.Thread(target=self._read, args=(stream, lines), daemon=True).start()

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def ask(self) -> str:
        """The answer to QUESTION in a new conversation."""
        n = len(self.answers)
        assert self.process.stdin is not None
        self.process.stdin.write(f"/reset\n{QUESTION}\n")
        self.process.stdin.flush()
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.answers) > n, DEADLINE_S), self.told
        return self.answers[n]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def test_blocks_leave_a_node_under_a_quota(bed: Testbed) -> None:
    talk = Talk(bed, "--exclude", "desk")
    try:
        expected = talk.ask()
        assert "Paris" in expected
        rows = {row["name"]: row for row in bed.nodes()}
        (slow,) = [name for name, row in rows.items() if row["stages"]]
        other = "attic" if slow == "kitchen" else "kitchen"
        bed.set_cpu(slow, 0.05)
        deadline_s = time.monotonic() + DEADLINE_S
        while not (found := SLOWED.search("\n".join(talk.told))):
            assert talk.ask() == expected
            assert time.monotonic() < deadline_s, talk.told
        assert found["to"] == other
        assert talk.ask() == expected
        rows = {row["name"]: row for row in bed.nodes()}
        assert [name for name, row in rows.items() if row["stages"]] == [other]
    finally:
        talk.end()
