"""What a node counts of its steps, and what a status and `mdi nodes` tell of it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import PeerError
from mdi.node.messages import reported_steps, step_times_messages
from mdi.node.meter import MAX_KINDS, MAX_UNREAD, RECENT_STEPS, WARM_UP_STEPS, Meter, between
from mdi.node.speed import speed_of
from mdi.node.stage import LoadedStage
from mdi.plan.live import StepTimes
from mdi.profile.blocks import BlockTimes, LinearTime
from mdi.wire import mdi_pb2 as pb
from mdi.wire.frame import Row
from tests.node.test_stage import SPEC, AddOne, frame

ONE = (Row(0, 10, 1, 1),)


def warm() -> Meter:
    meter = Meter()
    for _ in range(WARM_UP_STEPS):
        meter.add(ONE, 99.0)
    return meter


def test_the_first_steps_after_a_load_do_not_count() -> None:
    meter = warm()
    assert meter.totals == {}
    meter.add(ONE, 0.5)
    assert meter.totals == {1: StepTimes(1, 1, 10, 0.5)}


def test_steps_without_rows_or_time_do_not_count() -> None:
    meter = warm()
    meter.add((), 1.0)
    meter.add(ONE, 0.0)
    assert meter.totals == {}
    assert meter.recent == []


def test_the_context_is_that_before_a_row_on_average() -> None:
    meter = warm()
    meter.add((Row(0, 100, 1, 1), Row(1, 0, 3, 1)), 0.5)
    assert meter.totals == {4: StepTimes(4, 1, 25, 0.5)}


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 900), st.floats(1e-6, 10.0)), max_size=30), st.data())
def test_what_is_told_piece_by_piece_is_all_that_was_counted(steps: list[tuple[int, int, float]], data: st.DataObject) -> None:
    meter, told, seen = warm(), {}, []
    for rows, position, seconds in steps:
        meter.add((Row(0, position, rows, 0),), seconds)
        if data.draw(st.booleans()):
            before, told = told, meter.totals
            seen += between(before, told)
    seen += between(told, meter.totals)
    assert sum(each.steps for each in seen) == len(steps)
    assert sum(each.seconds for each in seen) == pytest.approx(sum(seconds for *_, seconds in steps))
    context = sum(position * rows for rows, position, _ in steps)
    assert sum(each.context_tokens * each.rows * each.steps for each in seen) == pytest.approx(context, abs=1e-6)


def test_what_is_kept_is_bounded() -> None:
    meter = warm()
    for rows in range(1, 2 * MAX_KINDS):
        meter.add((Row(0, 0, rows, 0),), 1.0)
    assert len(meter.totals) == MAX_KINDS
    for _ in range(2 * RECENT_STEPS):
        meter.add(ONE, 1.0)
    assert len(meter.recent) == RECENT_STEPS
    assert meter.totals[1].steps == 2 * RECENT_STEPS + 1


def test_it_may_be_read_while_the_engine_adds() -> None:
    meter, stop = warm(), threading.Event()

    def add() -> None:
        rows = 0
        while not stop.is_set():
            rows = rows % MAX_KINDS + 1
            meter.add((Row(0, 0, rows, 0),), 1e-3)

    adding = threading.Thread(target=add)
    adding.start()
    try:
        steps = 0
        for _ in range(50):
            assert len(meter.recent) <= RECENT_STEPS
            steps, before = sum(each.steps for each in meter.totals.values()), steps
            assert steps >= before
    finally:
        stop.set()
        adding.join()


def test_step_times_survive_the_wire_and_wrong_ones_are_refused() -> None:
    times = [StepTimes(1, 70, 128.5, 0.3), StepTimes(256, 2, 0, 1.5)]
    status = pb.NodeStatus(step_times=step_times_messages(times))
    assert reported_steps(pb.NodeStatus.FromString(status.SerializeToString())) == times
    status.step_times[0].seconds = float("nan")
    with pytest.raises(PeerError, match="cannot take nan s"):
        reported_steps(status)
    with pytest.raises(PeerError, match="kinds of steps"):
        reported_steps(pb.NodeStatus(step_times=step_times_messages(times[:1] * (MAX_KINDS + 1))))
    assert reported_steps(pb.NodeStatus()) == []  # of a node that knows no step times


def test_a_stage_counts_what_it_computes_and_nothing_else() -> None:
    stage = LoadedStage(SPEC, AddOne())
    stage.compute(frame())
    for step in range(1, WARM_UP_STEPS + 3):
        stage.compute(frame(step, rows=(Row(0, 3, 1, 1),)))
    (times,) = stage.meter.totals.values()
    assert (times.rows, times.steps, times.context_tokens) == (1, 3, 3)
    assert 0 < times.seconds <= stage.busy_s


def test_the_speed_is_that_of_the_last_steps_beside_the_profile() -> None:
    stage = LoadedStage(SPEC, AddOne())
    profile = BlockTimes(LinearTime(0.001, 0.003), LinearTime(0.01, 0.09), SPEC.max_tokens)
    assert speed_of(stage, profile) is None
    stage.meter = warm()
    for _ in range(2 * RECENT_STEPS):
        stage.meter.add(ONE, 0.001)
    for _ in range(RECENT_STEPS):
        stage.meter.add(ONE, 0.008)
    assert speed_of(stage, None) is None
    assert speed_of(stage, profile) == pytest.approx(0.5)
    assert np.isclose(speed_of(stage, BlockTimes(LinearTime(0.001, 0.007), profile.prefill, SPEC.max_tokens)) or 0, 1.0)


def test_steps_that_nobody_looks_at_take_bounded_memory() -> None:
    meter = Meter()
    for _ in range(MAX_UNREAD + 10):
        meter.add(ONE, 1.0)
    assert meter.totals[1].steps == MAX_UNREAD - WARM_UP_STEPS
