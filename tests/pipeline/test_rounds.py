"""The order of link measurements, checked as a schedule: complete, without clashes, and as short as can be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.pipeline.rounds import Pair, pair_of, rounds


def all_pairs(nodes: list[str]) -> list[Pair]:
    return [pair_of(a, b) for a, b in itertools.combinations(nodes, 2)]


nodes = st.lists(st.text("abcdef", min_size=1, max_size=3), unique=True, max_size=11)


@given(nodes=nodes, data=st.data())
def test_each_pair_is_measured_once_and_no_device_twice_in_a_round(nodes: list[str], data: st.DataObject) -> None:
    devices = {node: data.draw(st.sampled_from("xyz" if data.draw(st.booleans()) else [node])) for node in nodes}
    pairs = all_pairs(nodes)
    wanted = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    most = data.draw(st.integers(1, 8))
    found = rounds(wanted, devices.__getitem__, most)
    assert sorted(pair for members in found for pair in members) == sorted(wanted)
    for members in found:
        assert 1 <= len(members) <= most
        ends = [{devices[node] for node in pair} for pair in members]
        assert sum(len(each) for each in ends) == len(set().union(*ends))


@pytest.mark.parametrize("n", range(2, 16))
def test_all_pairs_take_the_fewest_rounds_possible(n: int) -> None:
    names = [f"n{i:02}" for i in range(n)]
    assert len(rounds(all_pairs(names), str)) == (n - 1 if n % 2 == 0 else n)


def test_a_node_that_joins_meets_the_others_one_after_another() -> None:
    pairs = [pair_of("new", f"n{i}") for i in range(5)]
    assert [len(members) for members in rounds(pairs, str)] == [1] * 5


def test_separate_pairs_share_a_round() -> None:
    assert len(rounds([("a", "b"), ("c", "d"), ("e", "f")], str)) == 1


def test_nodes_of_one_device_count_as_one_end() -> None:
    assert len(rounds([("a", "b"), ("c", "d")], {"a": "x", "b": "y", "c": "x", "d": "z"}.__getitem__)) == 2
    assert rounds([("a", "b")], lambda _: "x") == [[("a", "b")]]


def test_no_pairs_take_no_rounds() -> None:
    assert rounds([], str) == []
