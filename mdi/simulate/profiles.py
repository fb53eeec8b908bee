"""Devices, links and clusters from TOML files. Every figure stands with its source; what is wrong is named by file and key.

    [devices.pi5-8gb]
    title = "Raspberry Pi 5, 8 GB"
    memory_gib = { value = 8, source = "..." }            # installed, or of the accelerator
    system_gib = { value = 1, source = "..." }            # of it, what is not to be had
    read_gb_per_s = { value = 10.5, source = "..." }      # weights read in decode, 10^9 bytes a second
    gflops = { value = 105, source = "..." }              # arithmetic of a prompt, 10^9 additions and multiplications a second
    step_ms = { value = 0.5, source = "..." }             # what a step costs beside its blocks

    [links.gigabit]
    title = "Gigabit Ethernet"
    latency_ms = { value = 0.1, source = "..." }          # from a node to the switch or access point, one way
    mbit_per_s = { value = 941, source = "..." }
    shared = false                                        # one medium for all: between two of its nodes half the speed is left

A cluster file names its nodes, the first one being the starter, and may describe devices and links of its own:

    title = "..."
    include = ["devices.toml", "links.toml"]              # beside this file
    [[nodes]]
    name = "attic"
    device = "pi5-8gb"
    link = "gigabit"
    count = 3                                             # attic-1 to attic-3
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi.errors import UserError

MAX_FILE_BYTES = 1 << 20  # a thousand nodes by name take 100 KiB
MAX_NODES = (
    1000  # a cluster of that size is planned within two seconds; a ring has at most as many stages as a model has blocks
)
MAX_INCLUDES = 8
MAX_TEXT = 200  # of names and titles
MAX_FIGURE = 1e9

DEVICE_FIGURES = ("memory_gib", "system_gib", "read_gb_per_s", "gflops", "step_ms")
LINK_FIGURES = ("latency_ms", "mbit_per_s")
MAY_BE_ZERO = {"system_gib", "step_ms", "latency_ms"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    key: str
    title: str
    memory_gib: Figure
    system_gib: Figure
    read_gb_per_s: Figure
    gflops: Figure
    step_ms: Figure
    battery: bool


@dataclass(frozen=True, slots=True)
class Link:
    key: str
    title: str
    latency_ms: Figure
    mbit_per_s: Figure
    shared: bool


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    device: Device
    link: Link


@dataclass(frozen=True, slots=True)
class Cluster:
    """`nodes[0]` is the starter."""

    title: str
    nodes: tuple[Node, ...]


def read_cluster(path: Path) -> Cluster:
    """Raises UserError for a file that cannot be read, is not TOML, or says something that cannot be."""
    table = _Table(str(path), _load(path))
    devices, links = _library(path, table)
    nodes: list[Node] = []
    entries = table.tables("nodes")
    if not entries:
        raise table.error("nodes", "a list of at least one node ([[nodes]])")
    for entry in entries:
        name, count = entry.text("name"), entry.whole("count", 1, MAX_NODES)
        device, link = entry.named("device", devices), entry.named("link", links)
        entry.nothing_else()
        nodes += [Node(name if count == 1 else f"{name}-{i + 1}", device, link) for i in range(count)]
        if len(nodes) > MAX_NODES:
            raise UserError(f"{path}: more than {MAX_NODES} nodes", hint="lower a count")
    names = [node.name for node in nodes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: two nodes are called {twice!r}", hint="give each a name of its own")
    title = table.text("title")
    table.nothing_else()
    return Cluster(title, tuple(nodes))


def _library(path: Path, table: _Table) -> tuple[dict[str, Device], dict[str, Link]]:
    """What the cluster file and those that it includes describe; its own come first."""
    devices, links = _described(table)
    includes = table.texts("include")
    if len(includes) > MAX_INCLUDES:
        raise table.error("include", f"at most {MAX_INCLUDES} files")
    for include in includes:
        file = path.parent / include
        other = _Table(str(file), _load(file))
        more_devices, more_links = _described(other)
        other.nothing_else()
        devices, links = more_devices | devices, more_links | links
    return devices, links


def _described(table: _Table) -> tuple[dict[str, Device], dict[str, Link]]:
    devices, links = {}, {}
    for key, entry in table.named_tables("devices"):
        figures = {name: entry.figure(name) for name in DEVICE_FIGURES}
        devices[key] = Device(key, entry.text("title"), **figures, battery=entry.flag("battery"))
        if devices[key].system_gib.value >= devices[key].memory_gib.value:
            raise entry.error("system_gib", "less than memory_gib")
        entry.nothing_else()
    for key, entry in table.named_tables("links"):
        figures = {name: entry.figure(name) for name in LINK_FIGURES}
        links[key] = Link(key, entry.text("title"), **figures, shared=entry.flag("shared"))
        entry.nothing_else()
    return devices, links


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', error)}",
            hint="give a cluster file, such as profiles/cluster-pis.toml",
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise UserError(
            f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB", hint="a cluster file lists nodes; use `count` for many alike"
        )
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}", hint="see the files in profiles/") from None


class _Table:
    """A TOML table that knows where it stands; what was not asked for is an error in the end."""

    def __init__(self, place: str, values: Mapping[str, Any]) -> None:
        self._place = place
        self._values = values
        self._asked: set[str] = set()

    def error(self, key: str, wanted: str) -> UserError:
        return UserError(f"{self._place}: {key} must be {wanted}", hint="see the files in profiles/")

    def _get(self, key: str) -> Any:
        self._asked.add(key)
        return self._values.get(key)

    def nothing_else(self) -> None:
        if unknown := sorted(self._values.keys() - self._asked):
            raise UserError(
                f"{self._place}: {unknown[0][:60]!r} is not known", hint=f"known here: {', '.join(sorted(self._asked))}"
            )

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
            raise self.error(key, f"a text of 1 to {MAX_TEXT} characters")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            raise self.error(key, "a list of texts")
        return value

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return bool(value)

    def whole(self, key: str, default: int, most: int) -> int:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.error(key, f"a whole number from 1 to {most}")
        return value

    def named(self, key: str, known: Mapping[str, Any]) -> Any:
        name = self.text(key)
        if name not in known:
            raise UserError(f"{self._place}: no {key} is called {name!r}", hint=f"one of: {', '.join(sorted(known)) or 'none'}")
        return known[name]

    def figure(self, key: str) -> Figure:
        value = self._get(key)
        if not isinstance(value, dict):
            raise self.error(key, 'a figure and its source, such as { value = 8, source = "..." }')
        entry = _Table(f"{self._place}.{key}", value)
        number, source = entry._get("value"), entry._get("source")
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or not math.isfinite(number)
            or not 0 <= number <= MAX_FIGURE
        ):
            raise entry.error("value", f"a number from 0 to {MAX_FIGURE:g}")
        if number == 0 and key not in MAY_BE_ZERO:
            raise entry.error("value", "more than 0")
        if not isinstance(source, str) or not source.strip():
            raise entry.error("source", "where the figure comes from: a citation, or what it was derived from")
        entry.nothing_else()
        return Figure(float(number), source)

    def tables(self, key: str) -> list[_Table]:
        value = self._get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.error(key, f"a list of tables ([[{key}]])")
        return [_Table(f"{self._place}: {key}[{i}]", each) for i, each in enumerate(value)]

    def named_tables(self, key: str) -> list[tuple[str, _Table]]:
        value = self._get(key)
        if value is None:
            return []
        if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
            raise self.error(key, f"tables ([{key}.NAME])")
        return [(name, _Table(f"{self._place}: {key}.{name}", each)) for name, each in value.items()]
