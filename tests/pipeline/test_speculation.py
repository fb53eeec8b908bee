"""Guesses change no answer, whatever the schedule; each right one saves a step."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.engine.sampling import SamplingParams
from mdi.pipeline.api import FinishReason
from mdi.pipeline.scheduler import Sequence
from tests.pipeline.toy import VOCAB, ToyRing, reference

CTX = 48
PARAMS = st.sampled_from(
    [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.3, logit_bias=((2, 1.5),)),
        SamplingParams(temperature=0.6, seed=3),
        SamplingParams(temperature=1.0, top_k=4, top_p=0.9, min_p=0.05, seed=11),
        SamplingParams(temperature=0.8, repetition_penalty=1.1, seed=5),
    ]
)
ASKED = st.tuples(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
    PARAMS,
    st.integers(1, 40),
    st.sampled_from([(), (0,), (1, 4)]),
)


def play(
    ring: ToyRing, asked: list[tuple], *, speculate: bool, rng: random.Random, cancel_at: int | None = None
) -> dict[int, list[int]]:
    """Admits everything in order as slots become free, in an order of sending and receiving that `rng` draws. Answers by number."""
    waiting, running, answers = list(enumerate(asked)), {}, {}
    n_steps = 0
    while waiting or running:
        while waiting and len(running) < len(ring.scheduler._slots) and rng.random() < 0.7:
            number, (prompt, params, max_new, stop_ids) = waiting.pop(0)
            sequence = ring.scheduler.admit(prompt, params, max_new=max_new, stop_ids=frozenset(stop_ids), speculate=speculate)
            running[sequence] = number
            answers[number] = []
        if ring.step(wait=rng.random() < 0.5) is None and not waiting:
            assert not running
        n_steps += 1
        if n_steps == cancel_at and running:
            victim = rng.choice(list(running))
            if victim.finish is None:
                victim.finish = FinishReason.CANCELLED
                ring.scheduler.release(victim)
        for sequence, number in tuple(running.items()):
            answers[number] = sequence.answer
            if sequence.finish is not None:
                del running[sequence]
    return answers


@settings(max_examples=1500, deadline=None)
@given(
    asked=st.lists(ASKED, min_size=1, max_size=5),
    n_slots=st.integers(1, 3),
    chunk=st.integers(1, 20),
    in_flight=st.integers(1, 4),
    speculate=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
def test_the_answers_are_those_of_one_token_after_another(asked, n_slots, chunk, in_flight, speculate, seed) -> None:
    ring = ToyRing(n_slots=n_slots, ctx=CTX, chunk_tokens=chunk, max_in_flight=in_flight)
    answers = play(ring, asked, speculate=speculate, rng=random.Random(seed))
    for number, (prompt, params, max_new, stop_ids) in enumerate(asked):
        assert answers[number] == reference(prompt, params, max_new, CTX, frozenset(stop_ids))


@settings(max_examples=500, deadline=None)
@given(asked=st.lists(ASKED, min_size=2, max_size=5), cancel_at=st.integers(1, 20), seed=st.integers(0, 1 << 16))
def test_one_that_is_cancelled_with_guesses_on_their_way_harms_no_other(asked, cancel_at, seed) -> None:
    ring = ToyRing(n_slots=2, ctx=CTX, chunk_tokens=16, max_in_flight=3)
    answers = play(ring, asked, speculate=True, rng=random.Random(seed), cancel_at=cancel_at)
    cut = 0
    for number, (prompt, params, max_new, stop_ids) in enumerate(asked):
        expected = reference(prompt, params, max_new, CTX, frozenset(stop_ids))
        cut += answers[number] != expected
        assert answers[number] == expected[: len(answers[number])]
    assert cut <= 1


def alone(prompt: list[int], *, speculate: bool, max_new: int = 30) -> tuple[Sequence, int]:
    """The finished sequence, and how many steps it took."""
    ring = ToyRing(n_slots=1, ctx=256, chunk_tokens=64, max_in_flight=1)
    sequence = ring.scheduler.admit(prompt, SamplingParams(), max_new=max_new, speculate=speculate)
    while ring.step(wait=True) is not None:
        pass
    return sequence, ring.core.steps


def test_right_guesses_save_steps_and_are_counted() -> None:
    plain, n_plain = alone([1, 2, 3], speculate=False, max_new=200)
    fast, n_fast = alone([1, 2, 3], speculate=True, max_new=200)
    assert fast.tokens == plain.tokens
    assert n_plain == 200
    assert fast.drafter is not None
    assert n_fast == n_plain - fast.drafter.n_accepted
    assert 0 < fast.drafter.n_accepted <= fast.drafter.n_drafted


def test_rows_of_a_step_carry_the_guesses_and_ask_for_their_logits() -> None:
    ring = ToyRing(n_slots=1, ctx=64, chunk_tokens=64, max_in_flight=1)
    sequence = ring.scheduler.admit([1, 2, 3, 4, 1, 2, 3], SamplingParams(), max_new=40, speculate=True)
    step = ring.scheduler.next_step()
    assert step is not None
    n_guesses = len(sequence.draft.tokens)
    assert sequence.draft.tokens == (4, 1, 2, 3, 4)[:n_guesses]
    assert n_guesses > 0
    assert (step.rows[0].count, step.rows[0].emit) == (7 + n_guesses, 1 + n_guesses)
    assert step.token_ids == [1, 2, 3, 4, 1, 2, 3, *sequence.draft.tokens]


@pytest.mark.parametrize(("max_new", "ctx", "most"), [(1, 64, 0), (3, 64, 2), (40, 9, 1), (40, 8, 0)])
def test_guesses_stay_within_limit_and_context(max_new: int, ctx: int, most: int) -> None:
    ring = ToyRing(n_slots=1, ctx=ctx, chunk_tokens=64, max_in_flight=1)
    sequence = ring.scheduler.admit([1, 1, 1, 1, 1, 1, 1], SamplingParams(), max_new=max_new, speculate=True)
    assert len(sequence.propose().tokens) == most


def test_a_stop_token_is_never_guessed() -> None:
    ring = ToyRing(n_slots=1, ctx=64, chunk_tokens=64, max_in_flight=1)
    prompt = [1, 2, 3, 4, 5, 1, 2, 3]
    sequence = ring.scheduler.admit(prompt, SamplingParams(), stop_ids=frozenset({5}), speculate=True)
    assert sequence.propose().tokens == (4,)


def test_guesses_never_take_the_place_of_tokens_that_wait() -> None:
    ring = ToyRing(n_slots=2, ctx=64, chunk_tokens=10, max_in_flight=1)
    ring.scheduler.admit([1] * 5, SamplingParams(), speculate=True)
    ring.scheduler.admit([2] * 30, SamplingParams(), speculate=True)
    step = ring.scheduler.next_step()
    assert step is not None
    assert [(row.count, row.emit) for row in step.rows] == [(5, 1), (5, 0)]
