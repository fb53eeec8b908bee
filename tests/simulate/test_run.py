"""Whole simulations: arrivals, slots, deaths, and the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mdi.cli.app import main
from mdi.errors import ClusterError, UserError
from mdi.pipeline.api import StarterOptions
from mdi.plan.costs import Load
from mdi.plan.plan import Objective
from mdi.plan.solve import solve
from mdi.simulate.design import design
from mdi.simulate.report import percentile, report, report_json, report_text
from mdi.simulate.run import DETECTION_S, Death, simulate
from mdi.simulate.traffic import Request, Traffic
from tests.simulate.test_machine import ring

PROFILES = Path(__file__).parents[2] / "profiles"
ROW_BYTES = 16


def throughput(problem):
    return solve(problem, Objective.THROUGHPUT, min_nodes=min(3, len(problem.nodes)))


def outcome_of(problem, requests, *deaths):
    return simulate(problem, throughput(problem), requests, throughput, ROW_BYTES, deaths)


def test_everyone_gets_an_answer_as_long_as_was_asked_for():
    requests = Traffic(20, 60, 30, per_s=5.0, seed=3).requests(ctx=512)
    outcome = outcome_of(ring(n_workers=3), requests)
    assert [each.n_tokens for each in outcome.conversations] == [request.answer_tokens for request in requests]
    assert all(each.ttft_s > 0 and each.last_s >= each.first_s >= each.request.arrival_s for each in outcome.conversations)
    assert not any(each.failed for each in outcome.conversations)


def test_who_finds_no_slot_waits_for_one():
    requests = [Request(0.0, 50, 20)] * 6
    few = outcome_of(ring(slots=1), requests)
    many = outcome_of(ring(slots=6), requests)
    assert [each.first_s for each in few.conversations] == sorted(each.first_s for each in few.conversations)
    for before, after in zip(few.conversations, few.conversations[1:], strict=False):
        assert after.first_s > before.last_s
    assert many.end_s < few.end_s


def test_the_same_seed_gives_the_same_run_and_lengths_lie_in_their_spread():
    traffic = Traffic(50, 100, 40, per_s=2.0, seed=7)
    assert traffic.requests(512) == traffic.requests(512) != replace(traffic, seed=8).requests(512)
    assert all(50 <= each.prompt_tokens <= 150 and 20 <= each.answer_tokens <= 60 for each in traffic.requests(512))
    assert all(each.prompt_tokens + each.answer_tokens <= 64 for each in traffic.requests(64))
    arrivals = [each.arrival_s for each in replace(traffic, conversations=4000).requests(512)]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] / 4000 == pytest.approx(0.5, rel=0.05)
    assert outcome_of(ring(), traffic.requests(512)) == outcome_of(ring(), traffic.requests(512))


def test_after_a_death_answers_go_on_from_their_tokens():
    problem, requests = ring(n_workers=3), [Request(0.0, 50, 200)] * 3
    untouched = outcome_of(problem, requests)
    outcome = outcome_of(problem, requests, Death("worker 2", 2.0))
    assert [each.n_tokens for each in outcome.conversations] == [200] * 3
    (recovery,) = outcome.recoveries
    assert recovery.was_used
    assert "n2" not in recovery.plan.node_ids
    assert recovery.sent_bytes > 0
    assert recovery.ready_s > 2.0 + DETECTION_S
    assert all(each.longest_pause_s > DETECTION_S for each in outcome.conversations)
    assert outcome.end_s > untouched.end_s + DETECTION_S
    assert outcome.plan is recovery.plan


def test_a_second_death_while_the_first_is_being_dealt_with():
    problem, requests = ring(n_workers=4), [Request(0.0, 50, 100)] * 2
    first, second = throughput(problem).node_ids[1:3]
    outcome = outcome_of(problem, requests, Death(first, 2.0), Death(second, 4.0), Death(first, 5.0))
    assert [each.n_tokens for each in outcome.conversations] == [100] * 2
    (recovery,) = outcome.recoveries  # one plan, for those that outlived both
    assert not {first, second} & set(recovery.plan.node_ids)
    assert recovery.ready_s > 4.0 + DETECTION_S


def test_a_death_while_blocks_are_being_sent_is_dealt_with_too():
    problem, requests = ring(n_workers=4), [Request(0.0, 50, 100)] * 2
    problem = replace(problem, model=replace(problem.model, block_bytes=1 << 20))  # seconds to send
    (before,) = outcome_of(problem, requests, Death("worker 1", 2.0)).recoveries
    assert before.ready_s > 8
    second = before.plan.node_ids[1]
    outcome = outcome_of(problem, requests, Death("worker 1", 2.0), Death(second, 7.5))
    assert [each.n_tokens for each in outcome.conversations] == [100] * 2
    assert len(outcome.recoveries) == 2
    assert second not in outcome.plan.node_ids


def test_the_death_of_a_node_without_blocks_costs_nothing():
    problem, requests = ring(n_workers=3), [Request(0.0, 50, 40)]

    def alone(left):
        return solve(left, Objective.LATENCY)

    plan = alone(problem)
    spare = next(node for node in problem.nodes if node.node_id not in plan.node_ids)
    outcome = simulate(problem, plan, requests, alone, ROW_BYTES, (Death(spare.name, 0.5),))
    assert outcome.end_s == simulate(problem, plan, requests, alone, ROW_BYTES).end_s
    assert [each.was_used for each in outcome.recoveries] == [False]


def test_when_nobody_is_left_who_can_hold_the_model_answers_end_unfinished():
    problem = ring(n_workers=1)
    small = replace(problem.nodes[0], memory_bytes=800)
    problem = replace(problem, nodes=(small, problem.nodes[1]))
    planner = lambda left: solve(left, Objective.LATENCY)  # noqa: E731
    with pytest.raises(ClusterError):
        planner(replace(problem, nodes=(small,)))
    outcome = simulate(
        problem, planner(problem), [Request(0.0, 50, 400), Request(99.0, 5, 5)], planner, ROW_BYTES, (Death("n1", 1.0),)
    )
    assert [each.failed for each in outcome.conversations] == [True, True]
    told = report(outcome, 2)
    assert told.finished == 0
    assert "blocks fit" in report_text(told, outcome)


@pytest.mark.parametrize("death", [Death("starter", 1.0), Death("attic", 1.0), Death("worker 1", 1e12)])
def test_deaths_that_cannot_be_are_refused(death):
    with pytest.raises(UserError) as caught:
        outcome_of(ring(), [Request(0.0, 5, 5)], death)
    assert caught.value.hint


@pytest.mark.parametrize(
    "wrong", [{"conversations": 0}, {"prompt_tokens": 0}, {"answer_tokens": 1 << 30}, {"per_s": -1.0}, {"spread": 1.0}]
)
def test_traffic_that_cannot_be_is_refused(wrong):
    with pytest.raises(UserError):
        replace(Traffic(3, 10, 10), **wrong)


def test_percentiles_are_by_nearest_rank():
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (1, 50, 90, 99, 100)] == [1.0, 50.0, 90.0, 99.0, 100.0]
    assert percentile([3.0], 50) == 3.0


def test_the_report_adds_up():
    requests = [Request(1.0, 50, 40)] * 4
    problem = ring(n_workers=3)
    outcome = outcome_of(problem, requests)
    told = report(outcome, 6)
    assert told.tokens == 160
    assert told.seconds == pytest.approx(outcome.end_s - 1.0)
    assert told.tokens_per_s == pytest.approx(160 / told.seconds)
    assert told.unused_nodes == 6 - len(outcome.busy_s)
    for stage in outcome.plan.stages:
        assert told.idle[stage.name] == pytest.approx(1 - outcome.busy_s[stage.name] / told.seconds)
    assert json.loads(json.dumps(report_json(told, outcome), allow_nan=False))["ttft_s"]["p50"] == told.ttft_s["p50"]
    text = report_text(told, outcome)
    for part in ("4 conversations, 160 tokens", "tok/s together", "p90", "idle", "nodes of the cluster have no blocks"):
        assert part in text


def test_a_thousand_devices_are_simulated():
    options = StarterOptions(model="llama-3.1-405b", objective=Objective.THROUGHPUT, n_slots=8, ctx=1024)
    made = design(PROFILES / "cluster-campus.toml", options, Load(), 64)
    requests = Traffic(8, 64, 12, seed=1).requests(made.workload.ctx)
    dead = made.plan.stages[3].name

    def again(problem):
        return solve(problem, Objective.THROUGHPUT)

    outcome = simulate(made.problem, made.plan, requests, again, 4 * 16384, (Death(dead, 2.0),))
    told = report(outcome, len(made.problem.nodes))
    assert told.finished == 8
    assert dead not in [stage.name for stage in outcome.plan.stages]
    assert told.unused_nodes > 800


def test_the_command_prints_text_and_json(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["simulate", "--nodes", str(PROFILES / "cluster-pis.toml"), "--model", "llama-3.2-1b", *arguments])
        return int(ended.value.code or 0), capsys.readouterr()

    short = ("--conversations", "4", "--answer-tokens", "16", "--prompt-tokens", "32")
    code, printed = run(*short, "--kill", "pi-2@1")
    assert code == 0
    assert "pi-2 died at 1 s" in printed.out
    assert "tok/s together" in printed.out
    code, printed = run(*short, "--rate", "0.5", "--json")
    told = json.loads(printed.out)
    assert told["finished"] == 4
    assert told["plan"]["objective"] == "throughput"
    for wrong in (("--kill", "pi-2"), ("--kill", "pi-1@3"), ("--conversations", "0"), ("--rate", "-1")):
        code, printed = run(*short, *wrong)
        assert code == 2, wrong
        assert "mdi:" in printed.err
