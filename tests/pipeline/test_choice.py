"""What is left of a user's wishes when nodes are gone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mdi.errors import NoRoom, UserError
from mdi.pipeline.api import StarterOptions
from mdi.pipeline.choice import among, permitted_here, plan_of_those_left
from mdi.plan.costs import UNREACHABLE, LinkTable, Problem
from mdi.plan.plan import BlockRange
from mdi.plan.wishes import Pin, Wishes
from tests.plan.conftest import GIB, _home

PROBLEM = _home(("desk", 4, 2.0), ("attic", 4, 3.0), ("kitchen", 4, 4.0), n_blocks=12)
ALL = {node.node_id: node.memory_bytes for node in PROBLEM.nodes[1:]}
ATTIC_GONE = {"id-kitchen": ALL["id-kitchen"]}


def counts(left: Problem, **wishes: object) -> dict[str, int]:
    plan = plan_of_those_left(PROBLEM, left, StarterOptions(**wishes))  # type: ignore[arg-type]
    return {stage.name: len(stage.blocks) for stage in plan.stages}


def test_those_left_have_the_times_that_were_measured_and_the_memory_that_they_offer_now() -> None:
    left = among(PROBLEM, {"id-kitchen": 2 * GIB})
    assert [node.name for node in left.nodes] == ["desk", "kitchen"]
    assert left.nodes[0] is PROBLEM.nodes[0]
    assert left.nodes[1] == replace(PROBLEM.nodes[2], memory_bytes=2 * GIB)


def test_a_node_that_is_out_is_not_taken() -> None:
    assert [node.name for node in among(PROBLEM, ALL, {"id-attic"}).nodes] == ["desk", "kitchen"]


@pytest.mark.parametrize("as_table", [False, True])
def test_a_broken_link_leads_nowhere_either_way(as_table: bool) -> None:
    problem = PROBLEM
    if as_table:
        import numpy as np

        ids = tuple(node.node_id for node in problem.nodes)
        problem = replace(problem, links=LinkTable(ids, np.ones((3, 3)), np.ones((3, 3))))
    left = among(problem, ALL, broken={("id-attic", "id-kitchen")})
    assert left.links["id-attic", "id-kitchen"] == left.links["id-kitchen", "id-attic"] == UNREACHABLE
    assert left.links["id-desk", "id-kitchen"] == problem.links["id-desk", "id-kitchen"]
    assert len(counts(left, min_nodes=3)) == 2


def test_the_split_that_was_asked_for_holds_while_all_are_there() -> None:
    assert counts(among(PROBLEM, ALL), split=(2, 4, 6)) == {"desk": 2, "attic": 4, "kitchen": 6}


def test_without_a_node_its_split_and_the_number_of_nodes_are_wishes_no_longer() -> None:
    left = among(PROBLEM, ATTIC_GONE)
    assert sum(counts(left, split=(2, 4, 6)).values()) == 12
    assert set(counts(left, min_nodes=3)) == {"desk", "kitchen"}
    assert set(counts(among(PROBLEM, {}), min_nodes=3)) == {"desk"}


def test_only_nodes_that_can_hold_a_block_count_for_the_number_of_nodes() -> None:
    assert set(counts(among(PROBLEM, {"id-attic": ALL["id-attic"], "id-kitchen": 0}), min_nodes=3)) == {"desk", "attic"}


def test_pins_of_those_left_stay_and_others_go() -> None:
    pins = (Pin("attic", BlockRange(3, 5)), Pin("kitchen", BlockRange(10, 12)))
    assert counts(among(PROBLEM, ATTIC_GONE), wishes=Wishes(pins=pins))["kitchen"] >= 2


def test_what_cannot_be_held_by_those_left_is_named() -> None:
    small = replace(PROBLEM, nodes=(replace(PROBLEM.nodes[0], memory_bytes=GIB), *PROBLEM.nodes[1:]))
    with pytest.raises(NoRoom, match=r"only 5 of 12 blocks fit: 896 MiB of memory are missing"):
        plan_of_those_left(small, among(small, {}), StarterOptions())


def test_a_node_that_is_excluded_may_be_gone() -> None:
    left = among(PROBLEM, ATTIC_GONE)
    assert permitted_here(left, Wishes(excluded=("attic", "kitch"))).nodes == left.nodes
    assert [node.name for node in permitted_here(left, Wishes(excluded=("kitchen",))).nodes] == ["desk"]
    with pytest.raises(UserError):
        plan_of_those_left(PROBLEM, among(PROBLEM, ALL), StarterOptions(split=(1, 1)))
