"""The machine in virtual time: against the forecast where one conversation runs, and step for step against the starter's real core."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace

import pytest

from mdi.engine.sampling import SamplingParams
from mdi.plan.costs import LinkCost, ModelCost, NodeCost, Problem, StageTime, StarterCost
from mdi.plan.forecast import Forecast
from mdi.plan.forecast import steps_in_flight as forecast_steps
from mdi.plan.solve import manual
from mdi.simulate.clock import Clock, Place
from mdi.simulate.machine import Machine
from tests.pipeline.toy import ToyRing


def ring(
    *, n_workers: int = 2, slots: int = 4, ctx: int = 512, chunk: int = 32, hop_s: float = 0.002, worker_s: float = 0.01
) -> Problem:
    nodes = [NodeCost("n0", "starter", 1 << 30, StageTime(0.001, 0.004), StageTime(0.002, 0.06))]
    nodes += [
        NodeCost(f"n{i}", f"worker {i}", 1 << 30, StageTime(0.001, worker_s * i), StageTime(0.002, 8 * worker_s * i))
        for i in range(1, n_workers + 1)
    ]
    links = {(a.node_id, b.node_id): LinkCost(hop_s, 10 * hop_s) for a in nodes for b in nodes if a is not b}
    model = ModelCost(n_workers + 1, 100, 1, ctx=ctx, slots=slots, stage_bytes=1, chunk_tokens=chunk)
    return Problem(model, tuple(nodes), StarterCost(0.003, 0.003, 1), links)


def plan_of(problem: Problem):
    return manual(problem, [node.node_id for node in problem.nodes], [1] * len(problem.nodes))


def run(problem: Problem, requests: list[tuple[int, int]]) -> tuple[Machine, dict[int, list[float]]]:
    """All at once; the times of each request's tokens."""
    clock, times = Clock(), {}
    numbers = {}
    machine = Machine(clock, problem, plan_of(problem), lambda sequence: times[numbers[id(sequence)]].append(clock.now_s))
    kept = []
    for number, (prompt, answer) in enumerate(requests):
        sequence = machine.admit([number + 1] * prompt, answer)
        kept.append(sequence)
        numbers[id(sequence)] = number
        times[number] = []
    machine.wake()
    clock.run()
    machine.scheduler.check_integrity()
    return machine, times


def test_the_forecast_knows_how_many_steps_the_starter_sends():
    assert forecast_steps(1) == 1  # alone, a step is done before the next one begins


def test_things_happen_in_the_order_of_their_times():
    clock, seen = Clock(), []
    for at in (3.0, 1.0, 2.0, 1.0):
        clock.at(at, lambda at=at: seen.append((at, clock.now_s)))
    clock.at(1.5, lambda: clock.at(0.0, lambda: seen.append(("late", clock.now_s))))  # the past is now
    clock.run()
    assert seen == [(1.0, 1.0), (1.0, 1.0), ("late", 1.5), (2.0, 2.0), (3.0, 3.0)]
    assert clock.events == 6


def test_a_place_does_one_thing_after_another():
    clock, done = Clock(), []
    place = Place(clock)
    clock.at(1.0, lambda: place.work(2.0, lambda: done.append(clock.now_s)))
    clock.at(1.5, lambda: place.work(1.0, lambda: done.append(clock.now_s)))
    clock.at(9.0, lambda: place.work(0.5, lambda: done.append(clock.now_s)))
    clock.run()
    assert done == [3.0, 4.0, 9.5]
    assert (place.busy_s, place.jobs) == (3.5, 3)


@pytest.mark.parametrize("prompt", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_one_conversation_takes_what_is_forecast(prompt, n_workers):
    problem = ring(n_workers=n_workers)
    forecast = Forecast(problem, tuple(node.node_id for node in problem.nodes), tuple([1] * len(problem.nodes)))
    _, times = run(problem, [(prompt, 20)])
    gaps = [after - before for before, after in zip(times[0], times[0][1:], strict=False)]
    # In a ring the starter computes its blocks of the next step before it lets a token out; the last token has no next step.
    own_s = forecast.decode_parts_s(1, 128)[0][0] - problem.head_s(1) if n_workers else 0.0
    assert times[0][0] == pytest.approx(forecast.ttft_s(prompt) + own_s)
    assert gaps[:-1] == pytest.approx([forecast.decode_step_s()] * 18)
    assert gaps[-1] == pytest.approx(forecast.decode_step_s() - own_s)


def test_context_makes_steps_longer():
    problem = ring()
    nodes = tuple(replace(node, decode_kv_s=1e-5) for node in problem.nodes)
    _, times = run(replace(problem, nodes=nodes), [(300, 50)])
    gaps = [after - before for before, after in zip(times[0], times[0][1:], strict=False)][:-1]
    assert gaps == sorted(gaps)
    assert gaps[-1] - gaps[0] == pytest.approx(47 * 3 * 1e-5)


def test_work_is_conserved():
    """Every place computes every step once, and is busy for as long as its steps take."""
    machine, times = run(ring(), [(100, 30), (40, 50), (10, 10)])
    assert [len(each) for each in times.values()] == [30, 50, 10]
    steps = machine.stages[1].jobs
    assert [place.jobs for place in (*machine.stages[1:], *machine.hops)] == [steps] * 5
    end_s = max(max(each) for each in times.values())
    assert all(0 < place.busy_s <= end_s for place in (*machine.stages, *machine.hops))


def test_several_conversations_are_no_faster_than_the_slowest_place_and_faster_than_one():
    problem = ring(n_workers=2)
    forecast = Forecast(problem, ("n0", "n1", "n2"), (1, 1, 1))
    _, times = run(problem, [(8, 200)] * 3)
    rate = 3 * 199 / (max(each[-1] for each in times.values()) - min(each[0] for each in times.values()))
    slowest_s = max(part for parts in forecast.decode_parts_s(1, 128) for part in parts)
    assert 1.2 * forecast.tokens_per_s(1) < rate <= 2 / slowest_s  # steps of two rows cost what one does


@pytest.mark.parametrize("conversations", [2, 3, 4, 7])
def test_conversations_that_begin_together_fill_the_ring_as_predicted(conversations):
    """All begin at once, so without steps of their own they would stay together in one that each node waits for."""
    problem = replace(ring(n_workers=2), model=replace(ring().model, slots=conversations))
    forecast = Forecast(problem, ("n0", "n1", "n2"), (1, 1, 1))
    _, times = run(problem, [(8, 200)] * conversations)
    start_s, stop_s = max(each[0] for each in times.values()), min(each[-1] for each in times.values())
    rate = sum(start_s < time_s <= stop_s for each in times.values() for time_s in each) / (stop_s - start_s)
    assert rate == pytest.approx(forecast.tokens_per_s(conversations, 128), rel=0.1)
    assert rate > 1.2 * conversations / forecast.decode_step_s(conversations) or conversations == 2


def test_a_stopped_machine_gives_nothing_more():
    clock, tokens = Clock(), []
    problem = ring()
    machine = Machine(clock, problem, plan_of(problem), lambda sequence: tokens.append(clock.now_s))
    machine.admit([1] * 50, 100)
    machine.wake()
    clock.at(1.0, machine.stop)
    clock.run()
    assert tokens
    assert max(tokens) <= 1.0
    assert len(tokens) < 100


@pytest.mark.parametrize("seed", range(12))
def test_steps_are_those_of_the_real_core(seed):
    """The same prompts through `StarterCore` and real frames: the rows of every step are the same ones, in the same order.

    Results wait there whenever the core asks, so here the workers and hops are made to take no time beside the starter.
    """
    draw = random.Random(seed)
    n_slots, chunk, workers = 3, draw.choice((4, 16)), draw.choice((1, 3))
    requests = [(draw.randint(1, 30), draw.randint(1, 25)) for _ in range(n_slots)]
    problem = ring(n_workers=workers, slots=n_slots, ctx=64, chunk=chunk, hop_s=1e-9, worker_s=1e-9)
    problem = replace(
        problem,
        nodes=tuple(
            replace(node, decode=StageTime(0, 1e-9), prefill=StageTime(0, 1e-9)) if i else node
            for i, node in enumerate(problem.nodes)
        ),
    )

    def recorded(scheduler, rows):
        original = scheduler.next_step

        def next_step():
            step = original()
            rows.append(step.rows)
            return step

        return next_step

    toy = ToyRing(n_slots=n_slots, ctx=64, chunk_tokens=chunk, max_in_flight=workers + 2)
    real: deque = deque()
    toy.scheduler.spread(Forecast(problem, plan_of(problem).node_ids, plan_of(problem).counts).rows_per_step)
    toy.scheduler.next_step = recorded(toy.scheduler, real)
    for number, (prompt, answer) in enumerate(requests):
        toy.scheduler.admit([number] * prompt, SamplingParams(), max_new=answer)
    while toy.step(wait=False) is not None:
        pass

    simulated: deque = deque()
    machine = Machine(Clock(), problem, plan_of(problem), lambda sequence: None)
    machine.scheduler.next_step = recorded(machine.scheduler, simulated)
    for number, (prompt, answer) in enumerate(requests):
        machine.admit([number] * prompt, answer)
    machine.wake()
    machine._clock.run()
    assert list(simulated) == list(real)
    assert len(real) >= max(answer for _, answer in requests)
