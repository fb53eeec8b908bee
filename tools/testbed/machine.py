"""What this machine allows: tried, not guessed, since containers forbid in many ways."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import UserError
from tools.testbed.cgroups import ControlGroups
from tools.testbed.network import PREFIX, Command
from tools.testbed.spec import BedSpec, Throttle

TIMEOUT_S = 20.0  # of one `ip` or `tc`: milliseconds on an idle machine
TUN = Path("/dev/net/tun")
PROBE_RATE = ("tbf", "rate", "100mbit", "burst", "4kb", "limit", "256kb")
PROBE_DELAY = ("netem", "delay", "1ms")


class CannotBuild(UserError):
    """This machine, or this user, cannot have that testbed; tests and benchmarks skip with the sentence."""

    exit_code = 77  # what test drivers take for "skipped"


@dataclass(frozen=True, slots=True)
class Machine:
    """`refusal` says why there can be no testbed at all; the rest is of no meaning then."""

    refusal: str | None
    rate_limits: bool = False
    netem: bool = False
    tap: bool = False
    control_groups: ControlGroups | None = None

    def check(self, spec: BedSpec) -> None:
        """Raises CannotBuild, naming what is missing for this testbed."""
        if self.refusal is not None:
            raise CannotBuild(self.refusal, hint="run it as root on a Linux machine of your own")
        for node in spec.nodes:
            if (node.up_mbit or node.down_mbit) and not self.rate_limits:
                raise CannotBuild(f"node {node.name} wants a rate, and this kernel has no tbf (CONFIG_NET_SCH_TBF)")
            if node.delayed and not (self.netem or self.tap):
                raise CannotBuild(f"node {node.name} wants a delay, and this kernel has neither netem nor {TUN}")
            if (node.cpu or node.memory_bytes) and self.control_groups is None:
                raise CannotBuild(
                    f"node {node.name} wants a limit of CPU or memory, and no control group with both can be made here",
                    hint="in a container, start it with --privileged and --cgroupns=host",
                )
            if node.cpu and spec.throttle is Throttle.SLICES and not (self.control_groups and self.control_groups.freezes):
                raise CannotBuild(
                    f"node {node.name} wants slices of processor time, and its control group cannot be frozen",
                    hint='leave out throttle = "slices"',
                )
            if missing := set(node.cores or ()) - os.sched_getaffinity(0):
                raise CannotBuild(f"node {node.name} wants processor {min(missing)}, which is not here")

    def to_json(self) -> dict[str, object]:
        groups = self.control_groups
        return {
            "testbeds": self.refusal or "yes",
            "rate limits (tbf)": self.rate_limits,
            "delays": "netem" if self.netem else "our own delay line" if self.tap else "no",
            "CPU and memory limits": f"control groups, version {groups.version}" if groups else "no",
        }


def this_machine() -> Machine:
    """Tries everything once, in a namespace that is gone afterwards."""
    refusal = _refusal()
    if refusal is not None:
        return Machine(refusal)
    probe = f"{PREFIX}probe-{os.getpid()}"
    try:
        run_command(("ip", "netns", "add", probe))
    except UserError as error:
        return Machine(f"no network namespaces here: {error}")
    try:
        run_command(("ip", "link", "add", "name", "va", "netns", probe, "type", "veth", "peer", "name", "vb", "netns", probe))
        run_command(("ip", "-n", probe, "link", "add", "name", "br", "type", "bridge"))
        qdisc = ("tc", "-n", probe, "qdisc", "replace", "dev", "va", "root")
        return Machine(
            None,
            rate_limits=_works((*qdisc, *PROBE_RATE)),
            netem=_works((*qdisc, *PROBE_DELAY)),
            tap=_works(("ip", "-n", probe, "tuntap", "add", "ta", "mode", "tap")),
            control_groups=_usable(ControlGroups.detect(), probe),
        )
    except UserError as error:
        return Machine(f"this kernel has no veth pairs or bridges: {error}")
    finally:
        run_command(("ip", "netns", "del", probe))


def run_command(command: Command) -> str:
    """Its output. Raises UserError with what it said when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{_shown(command)}: {error}") from None
    if done.returncode:
        raise UserError(f"{_shown(command)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def _refusal() -> str | None:
    if platform.system() != "Linux":
        return f"testbeds need Linux, and this is {platform.system()}"
    if os.geteuid() != 0:
        return "testbeds need root"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"testbeds need the program {program} (package iproute2)"
    return None


def _works(command: Command) -> bool:
    with suppress(UserError):
        run_command(command)
        return True
    return False


def _usable(groups: ControlGroups | None, probe: str) -> ControlGroups | None:
    """The control groups, if a group can be made and limited."""
    if groups is None:
        return None
    bed = probe.removeprefix(PREFIX)
    paths = [*groups.beds(bed), *groups.groups(bed, "node")]
    try:
        for path in groups.beds(bed):
            path.mkdir()
        for write in groups.enabling(bed):
            write.path.write_text(write.text)
        for path in groups.groups(bed, "node"):
            path.mkdir()
        for write in (groups.memory(bed, "node", 1 << 30), *groups.cpu(bed, "node", 0.5)):
            write.path.write_text(write.text)
    except OSError:
        return None
    finally:
        for path in reversed(paths):
            with suppress(OSError):
                path.rmdir()
    return groups


def _shown(command: Sequence[str]) -> str:
    return " ".join(command)
