"""A testbed that stands: builds it, runs commands in it, changes its limits, takes it down. The thin edge."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.cluster.peers import DEFAULT_PORT
from mdi.errors import ClusterError, UserError
from tools.testbed import delay, enter, slices
from tools.testbed.cgroups import ControlGroups, Write
from tools.testbed.leftovers import KEPT, bed_directory, locked, pids, remove
from tools.testbed.machine import Machine, run_command, this_machine
from tools.testbed.network import (
    NODE_END,
    namespaces,
    node_namespace,
    plug,
    port,
    shape,
    switch_namespace,
    veth,
)
from tools.testbed.spec import BedSpec, NodeSpec, Throttle

SOURCE = Path(__file__).parents[2]
START_TIMEOUT_S = 90.0  # eight daemons that start at once on two cores take 20 s
HELPER_TIMEOUT_S = 20.0
SLICES_PERIOD_MS = 4.0  # short against a stage of a step; each slice costs the machine some 20 µs of processor time
MEET_TIMEOUT_S = 20.0
LISTEN_S = 2.0  # for one look
LOOK_TIMEOUT_S = 60.0
POLL_S = 0.05
LOG_LINES = 20
ENDING = (signal.SIGTERM, signal.SIGHUP)


class Testbed:
    """A cluster while its context is open.

    Entering raises CannotBuild where the machine lacks something, UserError when a bed of that name is in use, ClusterError with
    a daemon's log when one does not start. What a killed process left of a bed with the same name is removed first.
    """

    __test__ = False  # its name makes pytest look

    def __init__(self, spec: BedSpec, machine: Machine | None = None) -> None:
        self.spec = spec
        self.met_by: str | None = None  # "mdns", or "peers" where multicast does not pass
        self._machine = machine or this_machine()
        self._processes: list[subprocess.Popen[Any]] = []
        self._kept = False

    def __enter__(self) -> Self:
        self._machine.check(self.spec)
        self._lock = locked(self.spec.name)
        self._lock.__enter__()
        try:
            if (bed_directory(self.spec.name) / KEPT).exists():
                raise UserError(
                    f"testbed {self.spec.name} is up", hint=f"python -m tools.testbed down {self.spec.name}, or use `exec`"
                )
            remove(self.spec.name)
            try:
                self._build()
            except BaseException:
                self._take_down()
                raise
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not self._kept:
                self._take_down()
        finally:
            self._lock.__exit__(None, None, None)

    def keep(self) -> None:
        """For `up`: the bed stays when the context is left. `remove` takes it down."""
        (bed_directory(self.spec.name) / KEPT).touch()
        self._kept = True
        for process in self._processes:
            process.returncode = 0  # nobody waits for it any more
        self._processes.clear()

    def home(self, node: str) -> Home:
        return Home(bed_directory(self.spec.name) / self.spec.node(node).name)

    def pid(self, node: str) -> int:
        """Of the node's daemon. Raises ClusterError when it has ended."""
        if (running := self.home(node).running()) is None:
            raise ClusterError(f"node {node} has ended:\n{self.log(node)}")
        return running.pid

    def log(self, node: str) -> str:
        """The last lines that the daemon printed."""
        with suppress(OSError):
            lines = (self.home(node).path / "node.log").read_text(errors="replace").splitlines()
            return "\n".join(lines[-LOG_LINES:]) or "(it printed nothing)"
        return "(it printed nothing)"

    def popen(
        self, command: Sequence[str], node: str | None = None, *, limited: bool = True, **options: Any
    ) -> subprocess.Popen[Any]:
        """Starts a command on a node (the starter when none is named), within its limits, with its home and this checkout's `mdi`."""
        spec = self.spec.node(node or self.spec.starter.name)
        groups = self._groups(spec) if limited else ()
        environment = self.environment(spec.name) | dict(options.pop("env", {}))
        process = subprocess.Popen(self._entering(spec, groups, command), env=environment, **options)
        self._processes.append(process)
        return process

    def run(
        self, command: Sequence[str], node: str | None = None, *, timeout_s: float = 600.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end and returns what it printed. Raises TimeoutExpired; it is killed then."""
        pipe = subprocess.PIPE
        process = self.popen(
            command, node, **({"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, "text": True} | options)
        )
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(list(command), process.returncode, output, errors)

    def environment(self, node: str) -> dict[str, str]:
        """Of commands on that node."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MDI_")}
        path = os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", os.defpath)))
        return kept | {"MDI_HOME": str(self.home(node).path), "PYTHONPATH": str(SOURCE), "PATH": path}

    def set_cpu(self, node: str, share: float | None) -> None:
        """Another share of a core for a node that runs; None lifts the limit."""
        spec = replace(self.spec.node(node), cpu=share)
        groups = self._control_groups(f"a CPU limit for {node}")
        self._change(spec)
        by_slices = self.spec.throttle is Throttle.SLICES
        # One thread computes on such a node, so it has no more than a core. A quota of one core would slow it: the kernel hands
        # quotas out to processors, 5 ms to each, and what the network's threads do not use of it on the other one is lost.
        _write(groups.cpu(self.spec.name, node, None if by_slices and share is not None and share <= 1 else share))
        if by_slices:
            self._write_slices()

    def set_rate(self, node: str, up_mbit: float, down_mbit: float | None = None) -> None:
        """Other rates for a node's cable."""
        spec = replace(self.spec.node(node), up_mbit=up_mbit, down_mbit=up_mbit if down_mbit is None else down_mbit)
        self._change(spec)
        self._shape(spec)

    def _change(self, changed: NodeSpec) -> None:
        nodes = tuple(changed if node.name == changed.name else node for node in self.spec.nodes)
        self.spec = replace(self.spec, nodes=nodes)

    def _build(self) -> None:
        bed_directory(self.spec.name).mkdir(mode=0o700)
        self._make_groups()
        for command in namespaces(self.spec):
            run_command(command)
        for node in self.spec.nodes:
            self._lay_cable(node)
        self._make_homes()
        for node in self.spec.nodes:
            self._start(node)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        for node in self.spec.nodes:
            self._await_start(node, deadline_s)
        self._meet()
        for node in self.spec.nodes:  # only now: imports at a tenth of a core would take half a minute
            if node.cpu is not None:
                self.set_cpu(node.name, node.cpu)
        if self.spec.throttle is Throttle.SLICES:
            self._start_slices()

    def _start_slices(self) -> None:
        self._write_slices()
        arguments = (str(self._slices_path), f"{SLICES_PERIOD_MS:g}")
        command = [sys.executable, "-I", "-S", enter.__file__, switch_namespace(self.spec.name), "-", "-"]
        command += [sys.executable, "-I", slices.__file__, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self._processes.append(process)
        _await_line(process, "the program that gives the nodes their slices")

    @property
    def _slices_path(self) -> Path:
        return bed_directory(self.spec.name) / "slices.json"

    def _write_slices(self) -> None:
        """Whole, since it is read at any time."""
        groups = self._control_groups("slices of processor time")
        table = {
            node.name: [*map(str, groups.freezer(self.spec.name, node.name)), node.cpu]
            for node in self.spec.nodes
            if node.cpu is not None and node.cpu < 1
        }
        partial = self._slices_path.with_suffix(".partial")
        partial.write_text(json.dumps(table))
        partial.replace(self._slices_path)

    def _take_down(self) -> None:
        with _undisturbed():
            remove(self.spec.name)
            for process in self._processes:
                process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        with suppress(OSError, ValueError):
                            stream.close()
            self._processes.clear()

    def _make_groups(self) -> None:
        groups, bed = self._machine.control_groups, self.spec.name
        if groups is None:
            return
        for path in groups.beds(bed):
            path.mkdir()
        _write(groups.enabling(bed))
        for node in self.spec.nodes:
            for path in groups.groups(bed, node.name):
                path.mkdir()
            if node.memory_bytes is not None:
                _write([groups.memory(bed, node.name, node.memory_bytes)])

    def _lay_cable(self, node: NodeSpec) -> None:
        if node.delayed and not self._machine.netem:
            self._start_delay(node)
        else:
            for command in veth(self.spec, node):
                run_command(command)
        for command in plug(self.spec, node):
            run_command(command)
        self._shape(node)

    def _shape(self, node: NodeSpec) -> None:
        for command in shape(self.spec, node, netem=self._machine.netem):
            run_command(command)

    def _start_delay(self, node: NodeSpec) -> None:
        bed = self.spec.name
        ends = (node_namespace(bed, node.name), NODE_END, switch_namespace(bed), port(self.spec, node))
        process = subprocess.Popen(
            [sys.executable, delay.__file__, *ends, f"{node.delay_ms:g}", f"{node.jitter_ms:g}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        _await_line(process, f"the delay line of node {node.name}")

    def _make_homes(self) -> None:
        key = ClusterKey.generate()
        if self.spec.packs is not None:
            self.spec.packs.mkdir(parents=True, exist_ok=True)
        for node in self.spec.nodes:
            home = self.home(node.name).create()
            key.save(home)
            if self.spec.packs is not None:
                home.packs_path.rmdir()
                home.packs_path.symlink_to(self.spec.packs.absolute())

    def _start(self, node: NodeSpec) -> None:
        threads = () if node.threads is None else ("--threads", str(node.threads))
        command = (sys.executable, "-m", "mdi.cli.app", "node", "start", "--name", node.name, *threads, *node.arguments)
        with (self.home(node.name).path / "node.log").open("wb") as log:
            self.popen(
                command, node.name, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _await_start(self, node: NodeSpec, deadline_s: float) -> None:
        process = self._processes[len(self._processes) - len(self.spec.nodes) + self.spec.index(node.name)]
        while self.home(node.name).running() is None:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise ClusterError(f"node {node.name} did not start; it printed:\n{self.log(node.name)}")
            time.sleep(POLL_S)

    def _meet(self) -> None:
        """Waits until the starter's device finds every node by mDNS; where it never does, tells each node of the others."""
        deadline_s = time.monotonic() + MEET_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if {row["name"] for row in self.nodes() if row["reachable"]} >= {node.name for node in self.spec.nodes}:
                self.met_by = "mdns"
                return
        for node in self.spec.nodes:
            others = (f"{self.spec.address(each)}:{self._port(each)}" for each in self.spec.nodes if each is not node)
            self.home(node.name).write_peers(tuple(others))
        missing = {node.name for node in self.spec.nodes} - {row["name"] for row in self.nodes() if row["reachable"]}
        if missing:
            raise ClusterError(
                f"node {min(missing)} cannot be reached from {self.spec.starter.name}:\n{self.log(min(missing))}"
            )
        self.met_by = "peers"

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that `mdi nodes --json` lists on the starter's device."""
        command = (sys.executable, "-m", "mdi.cli.app", "nodes", "--json", "--wait", f"{LISTEN_S:g}")
        done = self.run(command, limited=False, timeout_s=LOOK_TIMEOUT_S)
        if done.returncode:
            raise ClusterError(f"mdi nodes failed: {done.stderr.strip()}")
        rows: list[dict[str, Any]] = json.loads(done.stdout)["nodes"]
        return rows

    def _port(self, node: NodeSpec) -> int:
        running = self.home(node.name).running()
        return running.port if running else DEFAULT_PORT

    def _groups(self, node: NodeSpec) -> tuple[Path, ...]:
        groups = self._machine.control_groups
        return groups.groups(self.spec.name, node.name) if groups else ()

    def _control_groups(self, what: str) -> ControlGroups:
        if self._machine.control_groups is None:
            raise UserError(f"no control groups here for {what}")
        return self._machine.control_groups

    def _entering(self, node: NodeSpec, groups: Sequence[Path], command: Sequence[str]) -> list[str]:
        joined = ",".join(str(group) for group in groups) or "-"
        cores = ",".join(str(core) for core in node.cores or ()) or "-"
        namespace = node_namespace(self.spec.name, node.name)
        return [sys.executable, "-I", "-S", enter.__file__, namespace, joined, cores, *command]


def standing(spec: BedSpec) -> Testbed:
    """A bed that `up` left, to run commands in it. Raises UserError when it is not there."""
    if not (bed_directory(spec.name) / KEPT).exists() or not pids(spec.name):
        raise UserError(f"testbed {spec.name} is not up", hint="python -m tools.testbed up FILE")
    return Testbed(spec)


def _await_line(process: subprocess.Popen[Any], what: str) -> None:
    """Until the program says that it is ready. Raises ClusterError when it does not."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(HELPER_TIMEOUT_S) or not process.stdout.readline():
            raise ClusterError(f"{what} did not start", hint="see what it printed above")


def _write(writes: Iterator[Write] | Sequence[Write]) -> None:
    for write in writes:
        try:
            write.path.write_text(write.text)
        except OSError as error:
            raise ClusterError(f"{write.path} does not take {write.text!r}: {error.strerror}") from None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave half of a testbed behind. Signals have handlers in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Mapping[signal.Signals, Any] = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *ENDING)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def unwinding() -> Iterator[None]:
    """While open, SIGTERM and a closed terminal end the program as Ctrl-C does: every context is left in order."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {each: signal.signal(each, end) for each in ENDING}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
