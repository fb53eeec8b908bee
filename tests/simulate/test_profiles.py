"""Cluster files: those that we ship, and those that somebody got wrong."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.errors import UserError
from mdi.simulate.profiles import MAX_NODES, read_cluster

PROFILES = Path(__file__).parents[2] / "profiles"
GOOD = """
title = "two"
[devices.pi]
title = "Pi"
memory_gib = { value = 8, source = "box" }
system_gib = { value = 0, source = "box" }
read_gb_per_s = { value = 10, source = "measured" }
gflops = { value = 100, source = "measured" }
step_ms = { value = 0, source = "measured" }
[links.wire]
title = "wire"
latency_ms = { value = 0.1, source = "measured" }
mbit_per_s = { value = 1000, source = "measured" }
[[nodes]]
name = "a"
device = "pi"
link = "wire"
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "cluster.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(PROFILES.glob("cluster-*.toml")), ids=lambda path: path.stem)
def test_the_shipped_clusters_can_be_read(path: Path) -> None:
    cluster = read_cluster(path)
    assert 1 <= len(cluster.nodes) <= MAX_NODES


def test_the_shipped_profiles_hold_what_people_own_and_say_where_it_is_from(tmp_path: Path) -> None:
    every = "title = 'all'\ninclude = ['devices.toml', 'links.toml']\n"
    keys = [line[9:-1] for line in (PROFILES / "devices.toml").read_text().splitlines() if line.startswith("[devices.")]
    for name in ("devices.toml", "links.toml"):
        (tmp_path / name).write_text((PROFILES / name).read_text())
    nodes = "".join(f"[[nodes]]\nname = '{key}'\ndevice = '{key}'\nlink = 'gigabit'\n" for key in keys)
    cluster = read_cluster(written(tmp_path, every + nodes))
    assert {"pi4-4gb", "pi5-4gb", "pi5-8gb", "pi5-16gb", "n100-16gb", "mac-mini-m4-16gb", "rtx-4090-24gb", "h100-80gb"} <= set(
        keys
    )
    words = ("cited", "measured", "derived", "assumed")
    for node in cluster.nodes:
        device, link = node.device, node.link
        figures = (device.memory_gib, device.system_gib, device.read_gb_per_s, device.gflops, device.step_ms)
        for figure in (*figures, link.latency_ms, link.mbit_per_s):
            assert figure.source.startswith(words), (device.key, figure)
            assert len(figure.source) > 12


def test_a_cluster_may_describe_its_own_devices_and_count_nodes(tmp_path: Path) -> None:
    cluster = read_cluster(written(tmp_path, GOOD + '[[nodes]]\nname = "b"\ndevice = "pi"\nlink = "wire"\ncount = 3\n'))
    assert [node.name for node in cluster.nodes] == ["a", "b-1", "b-2", "b-3"]
    assert cluster.nodes[0].device.read_gb_per_s.value == 10
    assert not cluster.nodes[0].device.battery


def test_its_own_devices_come_before_included_ones(tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text((PROFILES / "devices.toml").read_text().replace("pi5-8gb", "pi"))
    cluster = read_cluster(written(tmp_path, 'include = ["devices.toml"]\n' + GOOD))
    assert cluster.nodes[0].device.title == "Pi"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "two"', "", r"cluster.toml: title must be a text"),
        ('title = "two"', 'title = "two"\nnodes = 3', "is not TOML"),
        ("value = 8,", "", r"devices.pi.memory_gib: value must be a number from 0"),
        ("value = 8,", "value = 0,", r"devices.pi.memory_gib: value must be more than 0"),
        ("value = 8,", "value = -1,", r"value must be a number from 0"),
        ("value = 8,", "value = nan,", r"value must be a number from 0"),
        ("value = 8,", "value = true,", r"value must be a number from 0"),
        ('{ value = 8, source = "box" }', "8", r"devices.pi: memory_gib must be a figure and its source"),
        (', source = "box" }\nsystem', ', source = " " }\nsystem', r"source must be where the figure comes from"),
        ('{ value = 0, source = "box" }', '{ value = 8, source = "box" }', r"system_gib must be less than memory_gib"),
        ("[links.wire]", "speed = 3\n[links.wire]", r"devices.pi: 'speed' is not known"),
        ('device = "pi"', 'device = "pie"', r"nodes\[0\]: no device is called 'pie'"),
        ('link = "wire"', 'link = "string"', r"nodes\[0\]: no link is called 'string'"),
        ('link = "wire"', 'link = "wire"\ncount = 0', r"count must be a whole number from 1"),
        ('link = "wire"', 'link = "wire"\ncount = 1.5', r"count must be a whole number from 1"),
        ('link = "wire"', 'link = "wire"\n[[nodes]]\nname = "a"\ndevice = "pi"\nlink = "wire"', r"two nodes are called 'a'"),
        ('title = "two"', 'title = "two"\ninclude = ["none.toml"]', r"none.toml cannot be read"),
        ('title = "two"', 'title = "two"\ninclude = "x"', r"include must be a list of texts"),
        ('[[nodes]]\nname = "a"', '[nodes]\nname = "a"', r"nodes must be a list of tables"),
        ("[devices.pi]", "[devices]\npi = 3\n[devices.pj]", r"devices must be tables"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=message) as caught:
        read_cluster(written(tmp_path, GOOD.replace(old, new, 1)))
    assert caught.value.hint


def test_too_many_nodes_are_refused(tmp_path: Path) -> None:
    more = f'[[nodes]]\nname = "b"\ndevice = "pi"\nlink = "wire"\ncount = {MAX_NODES}\n'
    with pytest.raises(UserError, match="more than 1000 nodes"):
        read_cluster(written(tmp_path, GOOD + more))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_cluster(tmp_path)
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (2 << 20))
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_cluster(huge)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not TOML"):
        read_cluster(tmp_path / "bytes.toml")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, len(GOOD) - 1), st.text(max_size=4), st.integers(0, 6))
def test_any_damage_is_a_user_error_or_still_a_cluster(tmp_path_factory, at: int, text: str, n_cut: int) -> None:
    path = tmp_path_factory.mktemp("damaged") / "cluster.toml"
    path.write_text(GOOD[:at] + text + GOOD[at + n_cut :], encoding="utf-8", errors="replace")
    with contextlib.suppress(UserError):
        assert read_cluster(path).nodes
