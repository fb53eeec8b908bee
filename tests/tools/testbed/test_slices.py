"""Slices of processor time: where they lie, and that real processes get their share of it however long they have waited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import UserError
from tools.testbed import slices
from tools.testbed.bed import Testbed
from tools.testbed.leftovers import beds
from tools.testbed.machine import CannotBuild, Machine
from tools.testbed.slices import edges
from tools.testbed.spec import BedSpec, NodeSpec, Throttle, parse_spec

# 40 times 3 ms of computing after a pause: by quota, a share of a fifth would leave some of them at full speed.
SHARE = """
import time
began = time.perf_counter()
while time.perf_counter() - began < 1.0:
    pass
print(time.process_time() / (time.perf_counter() - began))
"""


def running(shares: dict[str, float], at: float) -> set[str]:
    """Who runs at that part of the period, by playing the edges of two periods."""
    now: set[str] = set()
    for round_ in (0, 1):
        for edge in edges(shares):
            if round_ + edge.at > 1 + at:
                return now
            (now.add if edge.runs else now.discard)(edge.node)
    return now


def test_slices_lie_end_to_end_and_whole_cores_have_none() -> None:
    shares = {"desk": 1.0, "laptop": 0.5, "pi-a": 0.25, "pi-b": 0.25}
    assert [running(shares, at) for at in (0.1, 0.49, 0.5, 0.74, 0.76, 0.99)] == [
        {"laptop"}, {"laptop"}, {"pi-a"}, {"pi-a"}, {"pi-b"}, {"pi-b"},
    ]  # fmt: skip


@given(st.lists(st.integers(1, 19), min_size=1, max_size=8))
def test_every_node_runs_for_its_share_and_no_more_at_once_than_the_shares_fill_cores(twentieths: list[int]) -> None:
    shares = {f"n{i}": share / 20 for i, share in enumerate(twentieths)}
    found = [running(shares, (tick + 0.5) / 20) for tick in range(20)]
    assert [sum(name in each for each in found) for name in shares] == twentieths
    assert max(len(each) for each in found) <= -(-sum(twentieths) // 20)


def test_a_node_gets_its_share_and_no_more(machine: Machine) -> None:
    if machine.control_groups is None or not machine.control_groups.freezes:
        pytest.skip("no control groups that freeze here")
    spec = BedSpec(
        f"s{os.getpid()}", (NodeSpec("desk", threads=1), NodeSpec("pi", cpu=0.2, threads=1)), throttle=Throttle.SLICES
    )
    with Testbed(spec, machine) as bed:
        share = float(bed.run((sys.executable, "-c", SHARE), "pi", timeout_s=120).stdout)
        # A frozen command of a testbed that is taken down must end too.
        bed.set_cpu("pi", 0.05)
        busy = bed.popen((sys.executable, "-c", "print(flush=True)\nwhile True: pass"), "pi", stdout=subprocess.PIPE)
        busy.stdout.readline()
    assert spec.name not in beds()
    assert share < 0.5  # however late the slices come on a busy machine; a node without limits has nearly all of a core


def test_the_program_thaws_all_when_it_is_ended(tmp_path: Path) -> None:
    """The files are plain ones here, which keep what was last written at their beginning."""
    state = tmp_path / "state"
    state.write_text("......")
    table = tmp_path / "slices.json"
    table.write_text(json.dumps({"pi": [str(state), "FROZEN", "THAWED", 0.5]}))
    process = subprocess.Popen([sys.executable, "-I", slices.__file__, str(table), "1"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    while "FROZEN" not in state.read_text():
        assert process.poll() is None
    process.terminate()
    assert process.wait(20) == 0
    process.stdout.close()
    written = state.read_text()
    assert written.endswith("THAWED")
    assert {written[index : index + 6] for index in range(0, len(written), 6)} == {"FROZEN", "THAWED"}


def test_a_file_asks_for_slices_by_name() -> None:
    text = 'name = "b"\n{}\n[[node]]\nname = "pi"\ncpu = 0.5'
    assert parse_spec(text.format("")).throttle is Throttle.QUOTA
    assert parse_spec(text.format('throttle = "slices"')).throttle is Throttle.SLICES
    with pytest.raises(UserError, match="throttle = 'axe' is unknown"):
        parse_spec(text.format('throttle = "axe"'))


def test_where_groups_cannot_be_frozen_there_are_no_slices(machine: Machine) -> None:
    spec = BedSpec("b", (NodeSpec("pi", cpu=0.5),), throttle=Throttle.SLICES)
    if machine.control_groups is None:
        pytest.skip("no control groups here")
    with pytest.raises(CannotBuild, match="cannot be frozen"):
        replace(machine, control_groups=replace(machine.control_groups, freezes=False)).check(spec)
