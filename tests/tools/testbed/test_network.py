from __future__ import annotations

from dataclasses import replace

import pytest

from tools.testbed.network import belongs, namespaces, plug, shape, veth
from tools.testbed.spec import BedSpec, NodeSpec

DESK, PI = NodeSpec("desk"), NodeSpec("pi", up_mbit=20, down_mbit=100, delay_ms=5, jitter_ms=2)
SPEC = BedSpec("house", (DESK, PI))


def test_every_node_has_a_namespace_and_the_switch_one_more() -> None:
    made = [command[-1] for command in namespaces(SPEC) if command[:3] == ("ip", "netns", "add")]
    assert made == ["mdi-tb.house", "mdi-tb.house.desk", "mdi-tb.house.pi"]


def test_a_cable_joins_a_node_and_the_bridge() -> None:
    (cable,) = veth(SPEC, PI)
    assert cable[:6] == ("ip", "link", "add", "name", "eth0", "netns")
    assert cable[6] == "mdi-tb.house.pi"
    assert cable[-4:] == ("name", "p2", "netns", "mdi-tb.house")
    commands = [" ".join(command) for command in plug(SPEC, PI)]
    assert "ip -n mdi-tb.house link set p2 master br0 up" in commands
    assert "ip -n mdi-tb.house.pi address add 10.77.0.2/24 dev eth0" in commands


def test_a_node_without_limits_is_not_shaped() -> None:
    assert shape(SPEC, DESK, netem=True) == shape(SPEC, DESK, netem=False) == []


def test_each_direction_has_its_rate() -> None:
    up, down = (" ".join(command) for command in shape(SPEC, PI, netem=False))
    assert up.startswith("tc -n mdi-tb.house.pi qdisc replace dev eth0 root handle 1: tbf rate 20000000bit")
    assert down.startswith("tc -n mdi-tb.house qdisc replace dev p2 root handle 1: tbf rate 100000000bit")


def test_netem_delays_each_direction_and_the_rate_lies_below_it() -> None:
    commands = [" ".join(command) for command in shape(SPEC, PI, netem=True)]
    assert len(commands) == 4
    assert commands[0].endswith("root handle 1: netem limit 10000 delay 6ms 1ms")
    assert "parent 1:1 handle 10: tbf rate 20000000bit" in commands[1]
    (alone, _) = shape(SPEC, replace(PI, up_mbit=None, down_mbit=None), netem=True)
    assert "netem" in alone


def test_the_bucket_lets_less_than_a_decode_frame_through_at_once_on_slow_links_and_feeds_the_timer_on_fast_ones() -> None:
    def burst(mbit: float) -> int:
        command = shape(SPEC, replace(DESK, up_mbit=mbit), netem=False)[0]
        return int(command[command.index("burst") + 1].removesuffix("b"))

    assert burst(1) == burst(50) == 3028
    assert burst(1000) == 31_250


@pytest.mark.parametrize(
    ("namespace", "bed", "ours"),
    [
        ("mdi-tb.a", "a", True),
        ("mdi-tb.a.desk", "a", True),
        ("mdi-tb.ab", "a", False),
        ("mdi-tb.ab.desk", "a", False),
        ("other", "a", False),
        ("mdi-tb.ab.desk", None, True),
        ("mdi-other", None, False),
    ],
)
def test_a_testbed_owns_what_bears_its_name_and_nothing_else(namespace: str, bed: str | None, ours: bool) -> None:
    assert belongs(namespace, bed) is ours
