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
from tests.pipeline.test_speculation import ASKED, CTX
from tests.pipeline.toy import VOCAB, ToyEngine, ToyRing, reference

GREEDY = SamplingParams()


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


def rows_sent(ring: ToyRing, until: int) -> list[tuple[int, int]]:
    """(position, count) of each row that the only sequence sends until it has so many tokens."""
    (slot,) = ring.scheduler._slots
    sequence, rows = slot.owner, []
    while len(sequence.tokens) < until and ring.step(wait=False) is not None:
        rows += [(row.position, row.count) for row in slot.sent[-1:] if not rows or (row.position, row.count) != rows[-1]]
    return rows


@pytest.mark.parametrize("speculate", [False, True])
def test_a_replay_goes_in_the_rows_of_the_first_time_and_emits_only_what_never_came(speculate: bool) -> None:
    ring = ToyRing(n_slots=1, ctx=256, chunk_tokens=4, max_in_flight=1)
    ring.scheduler.admit([1, 2, 3, 1, 2, 3, 1, 2, 3], SamplingParams(), max_new=60, speculate=speculate)
    first = rows_sent(ring, 40)
    if not ring.core.in_flight:
        ring.step(wait=False)
        first.append((ring.scheduler._slots[0].sent[-1].position, ring.scheduler._slots[0].sent[-1].count))
    ring.begin_again(n_workers_left=1)
    steps = [ring.scheduler.next_step() for _ in first]
    assert [(row.position, row.count) for step in steps for row in step.rows] == first
    assert [step.rows[0].emit > 0 for step in steps] == [False] * (len(first) - 1) + [True]
    assert ring.scheduler.next_step() is None
    ring.scheduler.check_integrity()


class RoundedEngine(ToyEngine):
    """As real kernels do: a token computed alone leaves another trace in KV than one of a larger row, and that in everything after it."""

    def forward(self, spans, hidden):  # type: ignore[no-untyped-def]
        hidden = hidden.copy()
        if len(hidden) % 2:
            hidden[-1, 0] += VOCAB  # `features` hashes it; the token itself is its remainder
        out = super().forward(spans, hidden)
        out[:, 1:3] %= VOCAB
        return out


@settings(max_examples=500, deadline=None)
@given(
    asked=ASKED,
    earlier=st.lists(st.integers(0, VOCAB - 1), max_size=12),
    chunk=st.integers(1, 20),
    speculate=st.booleans(),
    kills=st.sets(st.integers(1, 50), max_size=3),
)
def test_a_replay_gives_the_same_bits_where_kernels_round_by_the_rows_they_compute(
    asked, earlier, chunk, speculate, kills
) -> None:
    """One conversation, after an earlier turn that it begins with."""
    prompt, params, max_new, stop_ids = asked

    def answered(kills: set[int]) -> list[int]:
        ring = ToyRing(n_slots=1, ctx=CTX, chunk_tokens=chunk, max_in_flight=1, engine=RoundedEngine)
        if earlier:
            ring.scheduler.admit(earlier, GREEDY, max_new=2, speculate=speculate)
            while ring.step(wait=True) is not None:
                pass
        sequence = ring.scheduler.admit(
            [*earlier, *prompt], params, max_new=max_new, stop_ids=frozenset(stop_ids), speculate=speculate
        )
        for action in count(1):
            if action in kills and sequence.finish is None:
                ring.begin_again(n_workers_left=1)
            if ring.step(wait=True) is None:
                return sequence.answer
        raise AssertionError

    assert answered(kills) == answered(set())


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
