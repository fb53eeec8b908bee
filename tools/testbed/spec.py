"""What a testbed shall be: a TOML file as typed values. Pure but for reading the file."""

from __future__ import annotations

import ipaddress
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from mdi.errors import MdiError, UserError
from mdi.profile.memory import parse_bytes

NAME = re.compile(r"[a-z][a-z0-9-]{0,15}")  # a part of namespaces, directories and control groups
MAX_NODES = 64  # a daemon takes about 150 MiB; a /26 would still hold them
MIN_CPU, MAX_CPU = 0.05, 1024.0  # below a twentieth of a core, the daemon's start alone takes a minute
MIN_RATE_MBIT, MAX_RATE_MBIT = 0.1, 100_000.0
MAX_DELAY_MS = 2_000.0  # half of what the keepalive of a connection allows
MIN_MEMORY_BYTES = 64 << 20  # an interpreter with numpy and gRPC
DEFAULT_SUBNET = ipaddress.IPv4Network("10.77.0.0/24")
SEE = "docs/testbed.md lists what may stand there"


class Throttle(StrEnum):
    """How a node gets its share of a core: as much as it wants until the quota is used up, or by slices of time (`slices.py`)."""

    QUOTA = "quota"
    SLICES = "slices"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One device. None limits nothing.

    `cpu` is a share of one core (2.0 is two cores), `cores` the processors that it may run on. `up_mbit` and `down_mbit` are the
    rates from and to the node; `delay_ms` is added once each way, plus up to `jitter_ms`. `arguments` go to `mdi node start`.
    """

    name: str
    cpu: float | None = None
    cores: tuple[int, ...] | None = None
    memory_bytes: int | None = None
    up_mbit: float | None = None
    down_mbit: float | None = None
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    threads: int | None = None
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(f"{self.name[:40]!r} is no name of a node", hint="small letters, digits and -, at most 16")
        _check(self.name, "cpu", self.cpu, MIN_CPU, MAX_CPU)
        _check(self.name, "up_mbit", self.up_mbit, MIN_RATE_MBIT, MAX_RATE_MBIT)
        _check(self.name, "down_mbit", self.down_mbit, MIN_RATE_MBIT, MAX_RATE_MBIT)
        _check(self.name, "delay_ms", self.delay_ms, 0, MAX_DELAY_MS)
        _check(self.name, "jitter_ms", self.jitter_ms, 0, MAX_DELAY_MS)
        _check(self.name, "threads", self.threads, 1, 1024)
        _check(self.name, "memory", self.memory_bytes, MIN_MEMORY_BYTES, 1 << 62)
        if self.cores is not None and (not self.cores or min(self.cores) < 0):
            raise UserError(f"node {self.name}: cores must be a list of processor numbers", hint="such as cores = [0, 1]")

    @property
    def delayed(self) -> bool:
        return self.delay_ms > 0 or self.jitter_ms > 0


@dataclass(frozen=True, slots=True)
class BedSpec:
    """A testbed. The first node is the starter: commands run there unless they name another one.

    `packs` is a directory that all nodes keep their packs in, so that weights are converted and sent once for many beds.
    """

    name: str
    nodes: tuple[NodeSpec, ...]
    subnet: ipaddress.IPv4Network = DEFAULT_SUBNET
    packs: Path | None = None
    throttle: Throttle = Throttle.QUOTA

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(f"{self.name[:40]!r} is no name of a testbed", hint="small letters, digits and -, at most 16")
        names = [node.name for node in self.nodes]
        if not 1 <= len(names) <= MAX_NODES:
            raise UserError(f"testbed {self.name} has {len(names)} nodes, not 1 to {MAX_NODES}", hint="add [[node]] tables")
        if len(set(names)) < len(names):
            raise UserError(f"testbed {self.name} has two nodes of one name", hint="give each [[node]] a name of its own")
        if self.subnet.num_addresses < len(names) + 2:
            raise UserError(f"{self.subnet} has no room for {len(names)} nodes", hint=f'subnet = "{DEFAULT_SUBNET}"')

    @property
    def starter(self) -> NodeSpec:
        return self.nodes[0]

    def index(self, name: str) -> int:
        """Raises UserError when there is no node of that name."""
        names = [node.name for node in self.nodes]
        if name not in names:
            raise UserError(f"testbed {self.name} has no node {name!r}", hint=", ".join(names))
        return names.index(name)

    def node(self, name: str) -> NodeSpec:
        """Raises as `index` does."""
        return self.nodes[self.index(name)]

    def address(self, node: NodeSpec) -> ipaddress.IPv4Address:
        return self.subnet[1 + self.index(node.name)]


def read_spec(path: Path) -> BedSpec:
    """Raises UserError that names the file and the field."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", hint="name a testbed's TOML file") from None
    try:
        return parse_spec(text)
    except MdiError as error:
        raise UserError(f"{path}: {error}", hint=error.hint) from None


def parse_spec(text: str) -> BedSpec:
    """Raises UserError for whatever is not a testbed. `[defaults]` holds what nodes leave out."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"not TOML: {error}", hint=SEE) from None
    _only(data, {"name", "subnet", "packs", "throttle", "defaults", "node"}, "the file")
    defaults = _table(data.get("defaults", {}), "[defaults]")
    if "name" in defaults:
        raise UserError("[defaults] cannot name a node", hint=SEE)
    nodes = data.get("node", [])
    if not isinstance(nodes, list):
        raise UserError("node must be a list of tables", hint="write [[node]]")
    specs = tuple(_node(defaults | _table(node, "[[node]]")) for node in nodes)
    try:
        subnet = ipaddress.IPv4Network(_text(data.get("subnet", str(DEFAULT_SUBNET)), "subnet"))
    except ValueError as error:
        raise UserError(f"subnet: {error}", hint=f'subnet = "{DEFAULT_SUBNET}"') from None
    packs, throttle = data.get("packs"), data.get("throttle", Throttle.QUOTA)
    if throttle not in tuple(Throttle):
        raise UserError(f"throttle = {throttle!r} is unknown", hint=f"one of: {', '.join(Throttle)}")
    return BedSpec(
        _text(data.get("name"), "name"),
        specs,
        subnet,
        None if packs is None else Path(_text(packs, "packs")).expanduser(),
        Throttle(throttle),
    )


def _node(table: Mapping[str, Any]) -> NodeSpec:
    keys = {field.name for field in fields(NodeSpec)} - {"memory_bytes"} | {"memory", "rate_mbit"}
    where = f"node {table.get('name', '')}".rstrip()
    _only(table, keys, where)
    rate = _number(table, "rate_mbit", where)
    threads = table.get("threads")
    cores = table.get("cores")
    if cores is not None and not (isinstance(cores, list) and all(type(core) is int for core in cores)):
        raise UserError(f"{where}: cores must be a list of processor numbers", hint="such as cores = [0, 1]")
    if threads is not None and type(threads) is not int:
        raise UserError(f"{where}: threads must be a whole number", hint="such as threads = 2")
    arguments = table.get("arguments", [])
    if not (isinstance(arguments, list) and all(isinstance(each, str) for each in arguments)):
        raise UserError(f"{where}: arguments must be a list of texts", hint='such as ["--max-memory", "2GiB"]')
    return NodeSpec(
        name=_text(table.get("name"), f"{where}: name"),
        cpu=_number(table, "cpu", where),
        cores=None if cores is None else tuple(sorted(set(cores))),
        memory_bytes=parse_bytes(_text(table["memory"], f"{where}: memory")) if "memory" in table else None,
        up_mbit=_number(table, "up_mbit", where, rate),
        down_mbit=_number(table, "down_mbit", where, rate),
        delay_ms=_number(table, "delay_ms", where, 0.0) or 0.0,
        jitter_ms=_number(table, "jitter_ms", where, 0.0) or 0.0,
        threads=threads,
        arguments=tuple(arguments),
    )


def _only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise UserError(f"{where} has the unknown key {unknown[0]!r}", hint=f"known: {', '.join(sorted(known))}")


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a table", hint=SEE)
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{what} must be a text", hint=SEE)
    return value


def _number(table: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float | None:
    value = table.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: {key} must be a number", hint=SEE)
    return float(value)


def _check(name: str, what: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise UserError(f"node {name}: {what} is {value:g}, outside {low:g} to {high:g}", hint=SEE)
