from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.engine.sampling import SamplingParams
from mdi.errors import ClusterError, PromptTooLong
from mdi.pipeline.api import FinishReason
from mdi.pipeline.scheduler import Scheduler, Sequence

GREEDY = SamplingParams()


def run(scheduler: Scheduler, sequences: list[Sequence], next_token: int = 7) -> list[tuple[int, ...]]:
    """Plays the engine until all end: each emitting row gets `next_token`. Returns the tokens of each step."""
    steps = []
    while step := scheduler.next_step():
        scheduler.check_integrity()
        steps.append(tuple(step.token_ids))
        for row, sequence in zip(step.rows, step.sequences, strict=True):
            if row.emit:
                sequence.accept(next_token)
                if sequence.finish:
                    scheduler.release(sequence)
    assert all(sequence.finish for sequence in sequences)
    return steps


def test_a_long_prompt_goes_in_chunks_and_only_its_end_emits() -> None:
    scheduler = Scheduler(n_slots=1, ctx=64, chunk_tokens=4)
    scheduler.admit(range(10), GREEDY, max_new=1)
    rows = [scheduler.next_step().rows[0] for _ in range(3)]
    assert [(row.position, row.count, row.emit) for row in rows] == [(0, 4, 0), (4, 4, 0), (8, 2, 1)]
    assert scheduler.next_step() is None


def test_decoding_goes_before_a_long_prompt_in_the_same_step() -> None:
    scheduler = Scheduler(n_slots=2, ctx=64, chunk_tokens=4)
    talking = scheduler.admit([1, 2], GREEDY)
    scheduler.next_step()
    talking.accept(3)
    scheduler.admit([9] * 8, GREEDY)
    step = scheduler.next_step()
    assert [(row.slot, row.count, row.emit) for row in step.rows] == [(talking.slot, 1, 1), (1 - talking.slot, 3, 0)]


def test_the_next_turn_computes_only_what_is_new() -> None:
    scheduler = Scheduler(n_slots=1, ctx=64, chunk_tokens=64)
    first = scheduler.admit([1, 2, 3], GREEDY, max_new=2)
    run(scheduler, [first])
    assert first.tokens == [1, 2, 3, 7, 7]
    # The last token was sampled but never fed, so its KV is not there.
    second = scheduler.admit([1, 2, 3, 7, 7, 4, 5], GREEDY, max_new=1)
    assert second.n_sent == 4
    assert run(scheduler, [second]) == [(7, 4, 5)]


def test_an_equal_prompt_still_computes_its_last_token() -> None:
    scheduler = Scheduler(n_slots=1, ctx=64, chunk_tokens=64)
    run(scheduler, [scheduler.admit([1, 2, 3], GREEDY, max_new=1)])
    assert scheduler.admit([1, 2, 3], GREEDY, max_new=1).n_sent == 2


def test_a_changed_beginning_is_computed_again() -> None:
    scheduler = Scheduler(n_slots=1, ctx=64, chunk_tokens=64)
    run(scheduler, [scheduler.admit([1, 2, 3], GREEDY, max_new=1)])
    assert scheduler.admit([1, 9, 3], GREEDY, max_new=1).n_sent == 1


def test_a_conversation_finds_its_slot_among_others() -> None:
    scheduler = Scheduler(n_slots=3, ctx=64, chunk_tokens=64)
    for prompt in ([1, 1, 1], [2, 2, 2], [3, 3, 3]):
        scheduler.admit(prompt, GREEDY, max_new=1)
    step = scheduler.next_step()
    for sequence in step.sequences:
        sequence.accept(7)
        scheduler.release(sequence)
    again = scheduler.admit([2, 2, 2, 7, 4], GREEDY)
    assert (again.slot, again.n_sent) == (1, 3)


def test_what_does_not_fit_the_context_is_refused() -> None:
    scheduler = Scheduler(n_slots=1, ctx=8, chunk_tokens=64)
    with pytest.raises(PromptTooLong, match="8 tokens, and the context 8"):
        scheduler.admit(range(8), GREEDY)
    sequence = scheduler.admit(range(7), GREEDY)
    run(scheduler, [sequence])
    assert (len(sequence.tokens), sequence.finish) == (8, FinishReason.LENGTH)


@pytest.mark.parametrize("may_grow", [True, False])
def test_a_larger_context_is_advised_only_where_the_model_has_one(may_grow: bool) -> None:
    with pytest.raises(PromptTooLong) as error:
        Scheduler(n_slots=1, ctx=8, chunk_tokens=64, may_grow=may_grow).admit(range(8), GREEDY)
    assert ("--ctx" in (error.value.hint or "")) == may_grow
    assert ("all that the model has" in str(error.value)) != may_grow


def test_more_conversations_than_slots_are_refused() -> None:
    scheduler = Scheduler(n_slots=1, ctx=8, chunk_tokens=64)
    scheduler.admit([1], GREEDY)
    with pytest.raises(ClusterError, match="busy"):
        scheduler.admit([1], GREEDY)


def test_a_stop_token_is_not_part_of_the_answer() -> None:
    scheduler = Scheduler(n_slots=1, ctx=8, chunk_tokens=64)
    sequence = scheduler.admit([1], GREEDY, stop_ids=frozenset({7}))
    run(scheduler, [sequence])
    assert (sequence.tokens, sequence.finish) == ([1], FinishReason.STOP)


@given(
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=6),
    n_slots=st.integers(1, 3),
    chunk=st.integers(1, 9),
)
def test_every_position_is_computed_once_and_in_order(prompts: list[list[int]], n_slots: int, chunk: int) -> None:
    scheduler = Scheduler(n_slots=n_slots, ctx=32, chunk_tokens=chunk)
    held: dict[int, list[int]] = {slot: [] for slot in range(n_slots)}
    waiting = list(prompts)
    running: list[Sequence] = []
    while waiting or running:
        while waiting and len(running) < n_slots:
            running.append(scheduler.admit(waiting.pop(0), GREEDY, max_new=3))
        step = scheduler.next_step()
        assert step is not None
        assert sum(row.count for row in step.rows) <= chunk
        for row, sequence in zip(step.rows, step.sequences, strict=True):
            tokens = sequence.tokens[row.position : row.position + row.count]
            # A stage overwrites from `position` on: all before must be this sequence's own beginning.
            assert held[row.slot][: row.position] == sequence.tokens[: row.position]
            held[row.slot][row.position :] = tokens
            if row.emit and sequence.accept(5) and sequence.finish:
                scheduler.release(sequence)
                running.remove(sequence)
        scheduler.check_integrity()


def test_whether_there_is_work_may_be_asked_while_another_thread_frees_a_slot() -> None:
    class FreedMeanwhile:
        """Its owner is gone when it is looked at again."""

        def __init__(self, owner: Sequence) -> None:
            self._owner: Sequence | None = owner

        @property
        def owner(self) -> Sequence | None:
            owner, self._owner = self._owner, None
            return owner

    scheduler = Scheduler(n_slots=1, ctx=8, chunk_tokens=64)
    scheduler._slots = [FreedMeanwhile(scheduler.admit([1], GREEDY))]  # type: ignore[list-item]
    assert [scheduler.has_work, scheduler.has_work] == [True, False]


def test_conversations_that_begin_together_go_in_several_steps_when_they_are_to_be_spread() -> None:
    scheduler = Scheduler(n_slots=4, ctx=64, chunk_tokens=64)
    scheduler.spread(lambda n: -(-n // 2))
    sequences = [scheduler.admit([i, i], GREEDY) for i in range(4)]
    scheduler.next_step()
    for sequence in sequences:
        sequence.accept(7)
    steps = [scheduler.next_step(), scheduler.next_step()]
    assert [[row.slot for row in step.rows] for step in steps] == [[0, 1], [2, 3]]
    assert scheduler.next_step() is None
    # The first two are back, and the fourth, but not the third: still no more than two of four.
    for i in (0, 1, 3):
        sequences[i].accept(7)
    assert len(scheduler.next_step().rows) == 2


def test_nobody_is_passed_over_while_others_go_round() -> None:
    scheduler = Scheduler(n_slots=3, ctx=64, chunk_tokens=64)
    scheduler.spread(lambda _: 1)
    sequences = [scheduler.admit([i], GREEDY) for i in range(3)]
    turns = []
    for _ in range(9):
        (sequence,) = scheduler.next_step().sequences
        turns.append(sequences.index(sequence))
        sequence.accept(7)
    assert turns == [0, 1, 2] * 3


def test_a_prompt_is_not_held_up_by_the_bound_on_those_who_decode() -> None:
    scheduler = Scheduler(n_slots=3, ctx=64, chunk_tokens=8)
    scheduler.spread(lambda _: 1)
    talking = [scheduler.admit([i, i], GREEDY) for i in range(2)]
    scheduler.next_step()
    for sequence in talking:
        sequence.accept(7)
    scheduler.admit([9] * 20, GREEDY)
    assert [(row.slot, row.count) for row in scheduler.next_step().rows] == [(0, 1), (2, 7)]
