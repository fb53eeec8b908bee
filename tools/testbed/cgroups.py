"""Which files of the kernel's control groups limit a node, in version 1 and 2. Pure but for looking which version there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.testbed.network import bed_prefix

# Short against a step of a model, so that a slow node looks slow and not stopped: in a period of 100 ms (the kernel's default) a
# node with a quarter of a core computes for 25 ms and then sleeps for 75.
PERIOD_US = 10_000
MIN_QUOTA_US = 1_000  # the kernel takes no less
MAX_PERIOD_US = 1_000_000
ROOT = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("cpu", "memory")
FREEZER = "freezer"  # a controller of version 1; in version 2 every group can be frozen


@dataclass(frozen=True, slots=True)
class Write:
    """`text` is to be written to `path`, a file of a control group."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class ControlGroups:
    """`version` 2 has one tree at `root`, 1 one for each controller below it. `freezes`: groups can be frozen."""

    version: int
    root: Path = ROOT
    freezes: bool = True

    @classmethod
    def detect(cls, root: Path = ROOT) -> ControlGroups | None:
        """None where the CPU and memory controllers are in neither version's tree."""
        if all((root / controller / "cgroup.procs").exists() for controller in V1_CONTROLLERS):
            return cls(1, root, (root / FREEZER / "cgroup.procs").exists())
        try:
            controllers = (root / "cgroup.controllers").read_text().split()
        except OSError:
            return None
        return cls(2, root) if {"cpu", "memory"} <= set(controllers) else None

    def trees(self) -> tuple[Path, ...]:
        if self.version == 2:
            return (self.root,)
        return tuple(self.root / controller for controller in (*V1_CONTROLLERS, *([FREEZER] if self.freezes else [])))

    def enabling(self, bed: str) -> list[Write]:
        """Version 2 hands controllers down one level at a time; version 1 has them everywhere."""
        if self.version == 1:
            return []
        return [Write(path / "cgroup.subtree_control", "+cpu +memory") for path in (self.root, self.root / bed_prefix(bed))]

    def beds(self, bed: str) -> tuple[Path, ...]:
        return tuple(tree / bed_prefix(bed) for tree in self.trees())

    def groups(self, bed: str, node: str) -> tuple[Path, ...]:
        """The directories that a process of this node joins, by its id in their `cgroup.procs`."""
        return tuple(directory / node for directory in self.beds(bed))

    def freezer(self, bed: str, node: str) -> tuple[Path, str, str]:
        """The file that freezes a node's processes, what is written to freeze them, and what to thaw them."""
        group = self._group(FREEZER, bed, node)
        return (group / "freezer.state", "FROZEN", "THAWED") if self.version == 1 else (group / "cgroup.freeze", "1", "0")

    def _group(self, controller: str, bed: str, node: str) -> Path:
        return (self.root if self.version == 2 else self.root / controller) / bed_prefix(bed) / node

    def memory(self, bed: str, node: str, n_bytes: int) -> Write:
        group = self._group("memory", bed, node)
        return Write(group / ("memory.limit_in_bytes" if self.version == 1 else "memory.max"), str(n_bytes))

    def cpu(self, bed: str, node: str, share: float | None) -> Iterator[Write]:
        """`share` of one core, None for no limit."""
        group = self._group("cpu", bed, node)
        period_us = PERIOD_US if share is None else min(MAX_PERIOD_US, max(PERIOD_US, round(MIN_QUOTA_US / share)))
        quota_us = None if share is None else round(share * period_us)
        if self.version == 2:
            yield Write(group / "cpu.max", f"{'max' if quota_us is None else quota_us} {period_us}")
            return
        # The kernel refuses a period in which the present quota would be more than it allows: lift the quota first.
        yield Write(group / "cpu.cfs_quota_us", "-1")
        yield Write(group / "cpu.cfs_period_us", str(period_us))
        if quota_us is not None:
            yield Write(group / "cpu.cfs_quota_us", str(quota_us))
