"""From reports to factors: what is told piece by piece, of whom it is believed, and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mdi.pipeline.live import DISTRUST_S, MIN_REPORTS, MOST_DISTRUST_S, REPORTS, LiveTimes
from mdi.plan.costs import LinkCost, ModelCost, NodeCost, Problem, StageTime, StarterCost
from mdi.plan.live import Factor, Factors, StepTimes
from mdi.plan.plan import Plan
from mdi.plan.solve import manual

IDS = ("desk", "attic", "shed")


@pytest.fixture
def problem() -> Problem:
    nodes = tuple(NodeCost(name, name, 1000, StageTime(0.001, 0.002), StageTime(0.01, 0.05)) for name in IDS)
    links = {(a, b): LinkCost(0.001 if a == "desk" else 0.003, 0.01) for a in IDS for b in IDS if a != b}
    return Problem(
        ModelCost(6, 1, 0, ctx=8, slots=1, stage_bytes=0, chunk_tokens=64), nodes, StarterCost(0.004, 0.004, 1), links
    )


def plan(problem: Problem, *counts: int, order: tuple[str, ...] = IDS) -> Plan:
    return manual(problem, order[: len(counts)], counts)


def told(problem: Problem, node: str, n_blocks: int, factor: float, steps: int = 10) -> list[StepTimes]:
    seconds = problem.decode_time(problem.index(node), 1, 128).seconds(n_blocks)
    return [StepTimes(1, steps, 128, steps * factor * seconds)]


def test_a_factor_is_known_after_some_reports_and_one_odd_report_changes_nothing(problem: Problem) -> None:
    live = LiveTimes(problem, plan(problem, 2, 4))
    for n in range(MIN_REPORTS):
        assert live.factors(0.0) == Factors()
        live.report("attic", told(problem, "attic", 4, 2.0 + n / 10))
    assert live.factors(0.0).decode("attic") == pytest.approx(2.1)
    live.report("attic", told(problem, "attic", 4, 400.0))
    assert live.factors(0.0).decode("attic") == pytest.approx(2.15)


def test_what_lasts_is_believed_and_what_was_is_forgotten(problem: Problem) -> None:
    live = LiveTimes(problem, plan(problem, 2, 4))
    for _ in range(REPORTS):
        live.report("attic", told(problem, "attic", 4, 1.0))
    for n in range(REPORTS):
        assert live.factors(0.0).decode("attic") == pytest.approx(1.0 if n < MIN_REPORTS else 3.0)
        live.report("attic", told(problem, "attic", 4, 3.0))


def test_time_without_steps_and_few_steps_tell_nothing(problem: Problem) -> None:
    live = LiveTimes(problem, plan(problem, 2, 4))
    for _ in range(100):
        live.report("attic", [])
        live.report("attic", told(problem, "attic", 4, 9.0, steps=2))
        live.report("shed", told(problem, "shed", 4, 9.0))  # which is not in the plan
    assert live.factors(0.0) == Factors()


def test_chunks_of_prompts_have_a_factor_of_their_own(problem: Problem) -> None:
    live = LiveTimes(problem, plan(problem, 2, 4))
    chunk_s = problem.prefill_time(1, 64, 0).seconds(4)
    for _ in range(MIN_REPORTS):
        live.report("attic", [*told(problem, "attic", 4, 1.0), StepTimes(64, 5, 0, 5 * 7.0 * chunk_s)])
    assert live.factors(0.0).nodes == {"attic": Factor(pytest.approx(1.0), pytest.approx(7.0))}


def test_a_starter_without_blocks_is_known_by_its_head(problem: Problem) -> None:
    head = [StepTimes(1, 10, 0, 10 * 3.0 * problem.head_s(1))]
    without, having = LiveTimes(problem, plan(problem, 0, 6)), LiveTimes(problem, plan(problem, 2, 4))
    for _ in range(MIN_REPORTS):
        without.report("desk", [])
        without.report_head(head)
        having.report_head(head)
    assert without.factors(0.0).decode("desk") == pytest.approx(3.0)
    assert having.factors(0.0) == Factors()


def test_what_a_trip_takes_beside_the_stages_are_the_hops_in_proportion(problem: Problem) -> None:
    live = LiveTimes(problem, plan(problem, 2, 2, 2))
    stages_s = {name: problem.decode_time(problem.index(name), 1, 128).seconds(2) for name in IDS[1:]}
    hops_s = 0.001 + 0.003 + 0.003
    live.report_trip(1.0)  # nothing is known of the stages yet
    for _ in range(MIN_REPORTS):
        live.report("attic", told(problem, "attic", 2, 2.0))
        live.report_trip(1.0)  # nor of all
    for _ in range(MIN_REPORTS):
        live.report("shed", told(problem, "shed", 2, 1.0))
        live.report_trip(2.0 * stages_s["attic"] + stages_s["shed"] + 4 * hops_s)
    found = live.factors(0.0).hops
    assert found == dict.fromkeys([("desk", "attic"), ("attic", "shed"), ("shed", "desk")], pytest.approx(4.0))


def test_a_node_that_stays_keeps_its_factor_and_one_that_left_slow_is_distrusted_for_a_while(problem: Problem) -> None:
    live, away, back = LiveTimes(problem, plan(problem, 2, 4)), plan(problem, 2, 4, order=("desk", "shed")), plan(problem, 2, 4)
    for _ in range(MIN_REPORTS):
        live.report("desk", told(problem, "desk", 2, 1.5))
        live.report("attic", told(problem, "attic", 4, 3.0))
    live.replanned(problem, away, 1000.0)
    assert live.factors(1000.0).decode("desk") == pytest.approx(1.5)
    assert live.factors(1000.0 + DISTRUST_S - 1).decode("attic") == pytest.approx(3.0)
    assert live.factors(1000.0 + DISTRUST_S).decode("attic") is None
    for wait_s in (2 * DISTRUST_S, 4 * DISTRUST_S):  # slow again, each time for twice as long
        live.replanned(problem, back, 2000.0)
        for _ in range(MIN_REPORTS):
            live.report("attic", told(problem, "attic", 4, 3.0))
        live.replanned(problem, away, 2000.0)
        assert live.factors(2000.0 + wait_s - 1).decode("attic") == pytest.approx(3.0)
        assert live.factors(2000.0 + wait_s).decode("attic") is None
    assert 4 * DISTRUST_S < MOST_DISTRUST_S


def test_a_node_that_left_without_being_slow_is_trusted(problem: Problem) -> None:
    live = LiveTimes(problem, plan(problem, 2, 4))
    for _ in range(MIN_REPORTS):
        live.report("attic", told(problem, "attic", 4, 1.2))
    live.replanned(problem, plan(problem, 6), 0.0)
    assert live.factors(0.0) == Factors()


def test_a_window_holds_other_blocks_at_the_same_speed(problem: Problem) -> None:
    """After a change a stage has other blocks: its factor goes on, and its last step's time does not."""
    live = LiveTimes(problem, plan(problem, 2, 4))
    for _ in range(MIN_REPORTS):
        live.report("attic", told(problem, "attic", 4, 2.0))
        live.report_trip(0.1)
    assert live.factors(0.0).hops
    live.replanned(replace(problem), plan(problem, 5, 1), 0.0)
    assert live.factors(0.0) == Factors({"attic": Factor(pytest.approx(2.0))})
    for _ in range(MIN_REPORTS):
        live.report_trip(0.1)
    assert not live.factors(0.0).hops
