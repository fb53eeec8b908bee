"""The pure parts of the benchmark: which splits there are, how a layout is asked for, and what is made of measurements."""

from __future__ import annotations

import random
from math import comb, perm

import pytest

from mdi.errors import UserError
from mdi.pipeline.api import StarterOptions
from mdi.pipeline.choice import best_plan
from mdi.plan.costs import LinkCost, ModelCost, NodeCost, Problem, StageTime, StarterCost
from mdi.plan.wishes import permitted
from tools.bench_plan.bench import BEDS
from tools.bench_plan.exhaustive import FINALISTS, finalists
from tools.bench_plan.figures import Entrant, Figures, signed_percent, within
from tools.bench_plan.layouts import Layout, all_layouts
from tools.bench_plan.predictions import MODELS, TESTBEDS
from tools.testbed.spec import read_spec


def problem(n_nodes: int = 3, n_blocks: int = 8) -> Problem:
    nodes = tuple(
        NodeCost(f"id-{name}", name, 1000, StageTime(0.001, 0.002 + 0.001 * i), StageTime(0.002, 0.02))
        for i, name in enumerate(("desk", "laptop", "pi", "phone")[:n_nodes])
    )
    links = {(a.node_id, b.node_id): LinkCost(0.001, 0.01) for a in nodes for b in nodes if a is not b}
    model = ModelCost(n_blocks, 10, 1, ctx=4, slots=1, stage_bytes=1, chunk_tokens=32)
    return Problem(model, nodes, StarterCost(0.003, 0.003, 20), links)


def test_there_are_as_many_splits_as_combinatorics_says() -> None:
    layouts = list(all_layouts(8, {"desk": 8, "laptop": 8, "pi": 8}))
    assert len(layouts) == len(set(layouts)) == sum(perm(2, k) * comb(7, k) for k in range(3))
    assert all(layout.n_blocks == 8 and layout.parts[0][0] == "desk" for layout in layouts)


def test_splits_keep_within_what_the_nodes_hold() -> None:
    limits = {"desk": 3, "laptop": 4, "pi": 2}
    layouts = list(all_layouts(8, limits))
    assert {layout.text for layout in layouts} == {
        "desk 2, laptop 4, pi 2", "desk 2, pi 2, laptop 4", "desk 3, laptop 3, pi 2", "desk 3, pi 2, laptop 3",
        "desk 3, laptop 4, pi 1", "desk 3, pi 1, laptop 4",
    }  # fmt: skip
    assert [layout.text for layout in all_layouts(2, {"desk": 0, "laptop": 2})] == ["desk 0, laptop 2"]


def test_every_layout_can_be_asked_for_by_pins() -> None:
    """The planner, held to the pins of a layout, has no other choice, whatever it would like better."""
    drawn = problem()
    layouts = [*all_layouts(8, {"desk": 8, "laptop": 8, "pi": 8}), Layout((("desk", 0), ("pi", 5), ("laptop", 3)))]
    for layout in random.Random(0).sample(layouts, 20) + layouts[-1:]:
        options = StarterOptions(wishes=layout.wishes())
        assert Layout.of(best_plan(permitted(drawn, options.wishes), options)) == layout


def test_a_layout_that_is_no_ring_is_refused() -> None:
    for parts in ((("desk", 1), ("desk", 2)), (("desk", 1), ("pi", 0)), (("desk", 0),), ()):
        with pytest.raises(UserError):
            Layout(parts)
    assert Layout.from_json([["desk", 1], ["pi", 2]]).text == "desk 1, pi 2"


def test_ratios_are_those_of_neighbours_and_errors_those_of_medians() -> None:
    # The machine is a tenth as fast in the second round.
    ours = Entrant("ours", "", Figures(12.0, 0.5), [Figures(10.0, 0.5), Figures(1.0, 5.0), Figures(10.0, 0.5)])
    other = Entrant("uniform", "", None, [Figures(5.0, 1.0), Figures(0.5, 10.0), Figures(6.0, 1.0)])
    assert other.ratio(ours, "decode_tokens_per_s") == 0.5
    assert ours.error("decode_tokens_per_s") == pytest.approx(0.2)
    assert ours.rounds[0].decode_s == pytest.approx(0.1)
    assert within([0.1, -0.15, 0.16, -0.2], 0.15) == 2
    assert signed_percent(-0.031) == "-3.1 %"


def test_ours_is_among_the_finalists_however_it_did_at_first() -> None:
    ranked = list(all_layouts(8, {"desk": 8, "laptop": 8, "pi": 8}))
    for ours in (ranked[0], ranked[-1]):
        final = finalists(ranked, ours)
        assert final[0] == ours
        assert len(set(final)) == 1 + FINALISTS
        assert set(final[1:]) <= set(ranked[: FINALISTS + 1])


def test_the_testbeds_can_be_read_and_ask_for_no_more_than_two_cores() -> None:
    specs = {path.stem: read_spec(path) for path in BEDS.glob("*.toml")}
    assert specs.keys() >= {*TESTBEDS, "house", "three", "eight"}
    assert len(specs["eight"].nodes) == 8
    for name, spec in specs.items():
        assert spec.name == name
        assert sum(node.cpu or 0 for node in spec.nodes) <= 2.0
    assert len(TESTBEDS) >= 6
    assert len(MODELS) >= 3
