"""Real network namespaces, control groups and daemons. Skipped, with the reason, where root or the kernel does not allow them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mdi.errors import ClusterError, UserError
from mdi.node import links
from tools.testbed import machine as machine_module
from tools.testbed.bed import SOURCE, Testbed
from tools.testbed.leftovers import bed_directory, beds, pids, remove
from tools.testbed.machine import CannotBuild, Machine, run_command, this_machine
from tools.testbed.network import belongs
from tools.testbed.spec import BedSpec, NodeSpec

ME = os.getpid()
ACK = """
import socket, sys, time

def receive(stream, n_bytes):
    while n_bytes:
        n_bytes -= len(stream.recv(min(n_bytes, 1 << 16)))

size = int(sys.argv[2])
if sys.argv[1] == "serve":
    with socket.create_server(("0.0.0.0", 4000)) as server:
        print("ready", flush=True)
        peer, _ = server.accept()
        for _ in range(3):
            receive(peer, size)
            peer.sendall(b"x")
else:
    with socket.create_connection((sys.argv[1], 4000)) as to:
        to.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            to.sendall(bytes(size))
            receive(to, 1)
            times.append(time.perf_counter() - start)
        print(min(times))
"""
BURN = """
import time
wall = time.perf_counter()
while time.process_time() < 0.3:
    pass
print(time.perf_counter() - wall)
"""


def namespaces_of(bed: str) -> list[str]:
    return [line.split()[0] for line in run_command(("ip", "netns", "list")).splitlines() if belongs(line.split()[0], bed)]


def assert_gone(bed: str) -> None:
    assert bed not in beds()
    assert namespaces_of(bed) == []
    assert not list(bed_directory(bed).parent.glob(f"{bed_directory(bed).name}*"))


@pytest.fixture(scope="module")
def bed(machine: Machine) -> Iterator[Testbed]:
    nodes = [
        NodeSpec("desk", threads=1),
        NodeSpec("kitchen", threads=1),
        NodeSpec("attic", threads=1, up_mbit=10, down_mbit=40),
        NodeSpec("shed", threads=1, delay_ms=15),
    ]
    if machine.control_groups is not None:
        nodes[1] = replace(nodes[1], memory_bytes=900 << 20)
    with Testbed(BedSpec(f"t{ME}", tuple(nodes)), machine) as bed:
        yield bed
    assert_gone(bed.spec.name)


def answer(bed: Testbed, *arguments: str) -> dict[str, object]:
    question = ("--prompt", "What is the capital of France?", "--temperature", "0", "--no-speculation", "--json")
    done = bed.run((sys.executable, "-m", "mdi.cli.app", "run", *question, *arguments), timeout_s=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_nodes_find_each_other_across_the_bridge(bed: Testbed) -> None:
    assert bed.met_by == "mdns"
    rows = {row["name"]: row for row in bed.nodes()}
    assert rows.keys() == {"desk", "kitchen", "attic", "shed"}
    assert all(row["reachable"] for row in rows.values())
    assert rows["kitchen"]["address"] == "10.77.0.2:52700"


def test_a_model_over_all_nodes_answers_as_one_device_does(bed: Testbed) -> None:
    alone, together = answer(bed, "--split", "10"), answer(bed, "--split", "1,3,3,3")
    assert "Paris" in str(alone["text"])
    assert together["token_ids"] == alone["token_ids"]
    stages = together["plan"]["stages"]  # type: ignore[index]
    assert [stage["name"] for stage in stages] == ["desk", "attic", "kitchen", "shed"]


def test_a_memory_limit_is_what_the_node_offers(bed: Testbed, machine: Machine) -> None:
    if machine.control_groups is None:
        pytest.skip("no control groups here")
    rows = {row["name"]: row for row in bed.nodes()}
    assert rows["kitchen"]["memory_offered_bytes"] < 900 << 20
    assert rows["desk"]["memory_offered_bytes"] > rows["kitchen"]["memory_offered_bytes"]


def test_a_cpu_limit_slows_what_runs_on_the_node(bed: Testbed, machine: Machine) -> None:
    if machine.control_groups is None:
        pytest.skip("no control groups here")
    bed.set_cpu("kitchen", 0.05)
    try:
        done = bed.run((sys.executable, "-c", BURN), "kitchen")
        slow = answer(bed, "--split", "1,0,9,0")
    finally:
        bed.set_cpu("kitchen", None)
    fast = answer(bed, "--split", "1,0,9,0")
    assert float(done.stdout) > 4.0  # 0.3 s of computing at a twentieth of a core, whatever else the machine does
    slow_rate, fast_rate = (found["timings"]["decode_tokens_per_s"] for found in (slow, fast))  # type: ignore[index]
    assert slow_rate < 0.7 * fast_rate


def measured_s(bed: Testbed, node: str, n_bytes: int) -> float:
    """Seconds until `node` has got so many bytes from the starter and has said so."""
    pipe = subprocess.PIPE
    server = bed.popen((sys.executable, "-c", ACK, "serve", str(n_bytes)), node, stdout=pipe, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        address = str(bed.spec.address(bed.spec.node(node)))
        done = bed.run((sys.executable, "-c", ACK, address, str(n_bytes)))
        assert done.returncode == 0, done.stderr
        return float(done.stdout)
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def test_a_rate_holds_and_can_be_changed(bed: Testbed) -> None:
    n_bytes = 10_000  # more than the bucket, one piece
    wire_s = n_bytes * 8 / 40e6
    assert measured_s(bed, "attic", n_bytes) > 0.6 * wire_s  # the bucket's part passes at once
    bed.set_rate("attic", 2)
    try:
        assert measured_s(bed, "attic", n_bytes) > 10 * wire_s
    finally:
        bed.set_rate("attic", 10, 40)


def test_a_delay_is_paid_in_both_directions(bed: Testbed) -> None:
    assert measured_s(bed, "shed", 1) > 0.030
    assert measured_s(bed, "kitchen", 1) < 0.030


def test_measured_links_show_the_rates_and_the_delays(bed: Testbed) -> None:
    done = bed.run((sys.executable, "-m", "mdi.cli.app", "links", "--json", "--refresh"))
    assert done.returncode == 0, done.stderr
    found = {(link["from_name"], link["to_name"]): link for link in json.loads(done.stdout)["links"]}
    assert len(found) == 12
    for other in ("desk", "kitchen", "shed"):  # between the nodes themselves, not through the starter
        up, down = (found[pair]["prefill_bytes_per_s"] * 8 / 1e6 for pair in (("attic", other), (other, "attic")))
        assert 3 < up < 11
        assert 1.5 * up < down < 44
        assert found[other, "attic"]["decode_s"] > 0.8 * (links.DECODE_BYTES - 3028) * 8 / 40e6
    for other in ("desk", "kitchen", "attic"):
        assert found["shed", other]["round_trip_s"] > 0.030
    assert found["desk", "kitchen"]["round_trip_s"] < 0.030
    again = bed.run((sys.executable, "-m", "mdi.cli.app", "links", "--json"))
    remembered = {(link["from_name"], link["to_name"]): link for link in json.loads(again.stdout)["links"]}
    assert all(remembered[pair]["prefill_s"] == link["prefill_s"] for pair, link in found.items())
    assert all(link["age_s"] > 0 for link in remembered.values())


def test_commands_run_where_they_are_sent(bed: Testbed) -> None:
    show = (sys.executable, "-c", "import os, psutil; print(os.environ['MDI_HOME'], psutil.net_if_addrs()['eth0'][0].address)")
    home, address = bed.run(show, "attic").stdout.split()
    assert home == str(bed.home("attic").path)
    assert address == "10.77.0.3"
    missing = bed.run(("no-such-command",))
    assert (missing.returncode, missing.stderr) == (127, "no-such-command: No such file or directory\n")


def test_a_second_bed_of_that_name_is_refused_while_the_first_stands(bed: Testbed, machine: Machine) -> None:
    with pytest.raises(UserError, match="is being used by another process"), Testbed(bed.spec, machine):
        pass
    assert len(namespaces_of(bed.spec.name)) == 5


def test_it_goes_when_something_fails_inside(machine: Machine) -> None:
    spec = BedSpec(f"x{ME}", (NodeSpec("one", threads=1),))
    inside: set[int] = set()

    def fail() -> None:
        with Testbed(spec, machine) as bed:
            inside.add(bed.pid("one"))
            assert len(namespaces_of(spec.name)) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert_gone(spec.name)
    assert not any(psutil.pid_exists(pid) for pid in inside)


def test_a_daemon_that_does_not_start_shows_its_log(machine: Machine) -> None:
    spec = BedSpec(f"y{ME}", (NodeSpec("one", arguments=("--device", "abacus")),))
    with pytest.raises(ClusterError, match="'abacus' is no device"), Testbed(spec, machine):
        pass
    assert_gone(spec.name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_from_outside_leaves_nothing(machine: Machine, tmp_path: Path, number: signal.Signals) -> None:
    name = f"k{ME}"
    path = tmp_path / "bed.toml"
    path.write_text(f'name = "{name}"\n[[node]]\nname = "one"\nthreads = 1\ndelay_ms = 1\n')
    command = (sys.executable, "-m", "tools.testbed")
    script = "import time; print('running', flush=True); time.sleep(600)"
    run = subprocess.Popen(
        [*command, "run", str(path), "--", sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=SOURCE,
    )
    try:
        assert run.stdout is not None
        line = run.stdout.readline()
        assert line == "running\n", run.communicate()
        inside = pids(name)
        assert len(inside) >= 3  # daemon, cable, command
        run.send_signal(number)
        run.wait(60)
        if number is signal.SIGKILL:
            assert pids(name) == inside
            assert name in beds()
            subprocess.run([*command, "down", name], check=True, cwd=SOURCE, capture_output=True, timeout=60)
        else:
            assert run.returncode == (130 if number is signal.SIGINT else 128 + number)
        assert_gone(name)
        assert not any(psutil.pid_exists(pid) for pid in inside)
    finally:
        run.kill()
        remove(name)  # first: what runs inside has inherited the pipes
        run.communicate()


def test_what_stands_can_be_used_changed_and_taken_down(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "bed.toml"
    path.write_text(f'name = "u{ME}"\n[[node]]\nname = "one"\nthreads = 1\n')

    def testbed(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tools.testbed", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=SOURCE, check=False)

    try:
        up = testbed("up", str(path))
        assert up.returncode == 0, up.stderr
        assert "10.77.0.1" in up.stdout
        again = testbed("up", str(path))
        assert again.returncode == 2
        assert "is up" in again.stderr
        assert testbed("exec", str(path), "--", "sh", "-c", "exit 5").returncode == 5
        changed = testbed("set", str(path), "one", "--rate", "50")
        assert changed.returncode == 0, changed.stderr
        assert "tbf" in run_command(("tc", "-n", f"mdi-tb.u{ME}.one", "qdisc", "show"))
    finally:
        testbed("down", f"u{ME}")
    assert_gone(f"u{ME}")
    gone = testbed("exec", str(path), "--", "true")
    assert (gone.returncode, "is not up" in gone.stderr) == (2, True)


def test_a_machine_that_lacks_something_says_what(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = BedSpec("x", (NodeSpec("one"),))
    Machine(None).check(plain)
    lacking = {
        "a rate": NodeSpec("one", up_mbit=1),
        "a delay": NodeSpec("one", delay_ms=1),
        "CPU or memory": NodeSpec("one", cpu=1),
        "processor 9999": NodeSpec("one", cores=(9999,)),
    }
    for what, node in lacking.items():
        with pytest.raises(CannotBuild, match=what):
            Machine(None).check(BedSpec("x", (node,)))
    monkeypatch.setattr(machine_module.os, "geteuid", lambda: 1000)
    machine = this_machine()
    assert machine.refusal == "testbeds need root"
    with pytest.raises(CannotBuild, match="testbeds need root") as refused:
        machine.check(plain)
    assert refused.value.exit_code == 77
