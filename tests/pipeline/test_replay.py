"""Nodes may die at any moment and as often as they like: the answers are those of a ring that nothing ever happened to."""

from __future__ import annotations

import random
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.engine.sampling import SamplingParams
from mdi.errors import FrameError
from mdi.pipeline.draft import NO_DRAFT
from tests.pipeline.test_speculation import ASKED, CTX, alone
from tests.pipeline.toy import ToyRing, reference


@settings(max_examples=1000, deadline=None)
@given(
    asked=st.lists(ASKED, min_size=1, max_size=4),
    n_slots=st.integers(1, 3),
    chunk=st.integers(1, 20),
    in_flight=st.integers(1, 4),
    speculate=st.booleans(),
    kills=st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=4),
    seed=st.integers(0, 1 << 16),
)
def test_no_death_changes_an_answer(asked, n_slots, chunk, in_flight, speculate, kills, seed) -> None:
    """`kills`: at which action the ring is lost, and whether a worker takes over or the starter goes on alone."""
    ring = ToyRing(n_slots=n_slots, ctx=CTX, chunk_tokens=chunk, max_in_flight=in_flight)
    rng, at = random.Random(seed), {number: int(others) for number, others in kills}
    waiting, running, answers = list(enumerate(asked)), {}, {}
    for action in count():
        if action in at:
            ring.begin_again(n_workers_left=at[action])
        while waiting and len(running) < n_slots and rng.random() < 0.7:
            number, (prompt, params, max_new, stop_ids) = waiting.pop(0)
            running[number] = answers[number] = ring.scheduler.admit(
                prompt, params, max_new=max_new, stop_ids=frozenset(stop_ids), speculate=speculate
            )
        if ring.step(wait=rng.random() < 0.5) is None and not waiting and not running:
            break
        running = {number: sequence for number, sequence in running.items() if sequence.finish is None}
    for number, (prompt, params, max_new, stop_ids) in enumerate(asked):
        assert answers[number].answer == reference(prompt, params, max_new, CTX, frozenset(stop_ids))


def test_guesses_that_were_lost_are_neither_right_nor_wrong() -> None:
    ring = ToyRing(n_slots=1, ctx=64, chunk_tokens=64, max_in_flight=1)
    sequence = ring.scheduler.admit([1, 2, 3, 4, 1, 2, 3], SamplingParams(), max_new=40, speculate=True)
    ring.step(wait=False)
    assert sequence.drafter is not None
    assert sequence.draft.tokens
    rates = dict(sequence.drafter._rates)
    ring.begin_again(n_workers_left=1)
    assert (sequence.draft, sequence.n_sent, sequence.drafter.n_drafted) == (NO_DRAFT, 0, 0)
    assert sequence.drafter._rates == rates


def test_a_replay_is_one_prefill_of_prompt_and_answer() -> None:
    ring = ToyRing(n_slots=1, ctx=256, chunk_tokens=64, max_in_flight=1)
    sequence = ring.scheduler.admit([1, 2, 3], SamplingParams(), max_new=30)
    while len(sequence.answer) < 20:
        ring.step(wait=True)
    ring.begin_again(n_workers_left=1)
    step = ring.scheduler.next_step()
    assert step is not None
    assert [(row.position, row.emit) for row in step.rows] == [(0, 1)]
    assert step.token_ids == sequence.tokens
    assert sequence.tokens == alone([1, 2, 3], speculate=False)[0].tokens[: len(sequence.tokens)]


def test_a_late_result_of_an_epoch_that_is_over_is_refused() -> None:
    ring = ToyRing(n_slots=1, ctx=64, chunk_tokens=64, max_in_flight=1)
    sequence = ring.scheduler.admit([1, 2, 3], SamplingParams(), max_new=9)
    ring.step(wait=False)
    ring.begin_again(n_workers_left=1)
    ring.step(wait=False)
    with pytest.raises(FrameError, match="of epoch 3 came"):
        ring.core.turn(ring.late[0])
    assert sequence.answer == []


def test_nothing_is_sent_between_two_epochs() -> None:
    ring = ToyRing(n_slots=1, ctx=64, chunk_tokens=64, max_in_flight=1)
    ring.scheduler.admit([1, 2, 3], SamplingParams(), max_new=9)
    ring.core.end_epoch()
    assert ring.scheduler.has_work
    assert not ring.core.can_send
