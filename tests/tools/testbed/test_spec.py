from __future__ import annotations

from pathlib import Path

import pytest

from mdi.errors import UserError
from tools.testbed.spec import BedSpec, NodeSpec, parse_spec, read_spec

HOUSE = """
name = "house"
subnet = "10.9.0.0/28"
packs = "/tmp/packs"
[defaults]
threads = 1
rate_mbit = 1000
[[node]]
name = "desk"
cpu = 1
[[node]]
name = "pi-4"
cpu = 0.25
cores = [1, 0, 1]
memory = "1GiB"
rate_mbit = 100
up_mbit = 20
delay_ms = 2.5
jitter_ms = 1
arguments = ["--max-memory", "800MB"]
"""


def test_a_file_becomes_nodes_with_the_defaults_of_the_file() -> None:
    spec = parse_spec(HOUSE)
    assert spec.nodes == (
        NodeSpec("desk", cpu=1.0, up_mbit=1000.0, down_mbit=1000.0, threads=1),
        NodeSpec("pi-4", 0.25, (0, 1), 1 << 30, 20.0, 100.0, 2.5, 1.0, threads=1, arguments=("--max-memory", "800MB")),
    )
    assert (spec.name, spec.packs, spec.starter.name) == ("house", Path("/tmp/packs"), "desk")
    assert [str(spec.address(node)) for node in spec.nodes] == ["10.9.0.1", "10.9.0.2"]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('name = "house"', "", "name must be a text"),
        ('name = "house"', 'name = "../etc"', "no name of a testbed"),
        ('name = "house"', 'name = "house.desk"', "no name of a testbed"),
        ('name = "desk"', 'name = "pi-4"', "two nodes of one name"),
        ('name = "desk"', 'name = "a b"', "no name of a node"),
        ("cpu = 0.25", "cpu = 0", "pi-4: cpu is 0"),
        ("cpu = 0.25", "cpu = nan", "pi-4: cpu is nan"),
        ("cpu = 0.25", "cpu = true", "pi-4: cpu must be a number"),
        ("cores = [1, 0, 1]", "cores = []", "pi-4: cores"),
        ("cores = [1, 0, 1]", "cores = [1.5]", "pi-4: cores"),
        ("cores = [1, 0, 1]", "cores = [-1]", "pi-4: cores"),
        ('memory = "1GiB"', 'memory = "1 sack"', "1 sack"),
        ('memory = "1GiB"', 'memory = "1MiB"', "pi-4: memory"),
        ("up_mbit = 20", "up_mbit = 1e9", "pi-4: up_mbit"),
        ("delay_ms = 2.5", "delay_ms = -1", "pi-4: delay_ms"),
        ("delay_ms = 2.5", "latency = 2", "pi-4 has the unknown key 'latency'"),
        ("threads = 1", "threads = 1.5", "threads must be a whole number"),
        ('arguments = ["--max-memory", "800MB"]', "arguments = [1]", "arguments must be a list of texts"),
        ('subnet = "10.9.0.0/28"', 'subnet = "10.9.0.1/28"', "subnet: 10.9.0.1/28 has host bits set"),
        ('subnet = "10.9.0.0/28"', 'subnet = "10.9.0.0/31"', "no room for 2 nodes"),
        ("[defaults]", 'colour = "red"\n[defaults]', "unknown key 'colour'"),
        ("[defaults]", '[defaults]\nname = "x"', "cannot name a node"),
        ("[[node]]", "[[node", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, named: str) -> None:
    assert old in HOUSE
    with pytest.raises(UserError, match=named.replace("[", r"\[")):
        parse_spec(HOUSE.replace(old, new))


def test_a_bed_needs_a_node_and_has_a_bound() -> None:
    with pytest.raises(UserError, match="0 nodes"):
        parse_spec('name = "x"')
    with pytest.raises(UserError, match="65 nodes"):
        BedSpec("x", tuple(NodeSpec(f"n{i}") for i in range(65)))


def test_the_file_is_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "bed.toml"
    with pytest.raises(UserError, match=r"bed\.toml cannot be read"):
        read_spec(path)
    path.write_text("name = 3")
    with pytest.raises(UserError, match=r"bed\.toml: name must be a text"):
        read_spec(path)


def test_a_node_is_found_by_its_name() -> None:
    spec = parse_spec(HOUSE)
    assert spec.node("pi-4").cpu == 0.25
    with pytest.raises(UserError, match="no node 'attic'"):
        spec.node("attic")
