from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mdi.pipeline.draft import LEAST_RATE, MAX_DRAFT, NO_DRAFT, PROBE_EVERY, Draft, Drafter, lengths, lookup


def by_definition(tokens: list[int], n: int, n_most: int) -> tuple[int, ...] | None:
    """Continues after the latest earlier occurrence of the last `n`, a token at a time."""
    starts = [i for i in range(len(tokens) - n) if tokens[i : i + n] == tokens[-n:]]
    if not starts:
        return None
    text = list(tokens)
    for i in range(n_most):
        text.append(text[starts[-1] + n + i])
    return tuple(text[len(tokens) :])


@given(st.lists(st.sampled_from([0, 1, 2, 256, 257, 65536]), min_size=1, max_size=40), st.integers(1, 12))
def test_the_latest_earlier_occurrence_of_the_longest_end_is_continued(tokens: list[int], n_most: int) -> None:
    """The ids share bytes with each other, so occurrences off their borders come too."""
    expected = next(((found, n) for n in (3, 2, 1) if (found := by_definition(tokens, n, n_most)) is not None), None)
    assert lookup(tokens, (3, 2, 1), n_most) == expected


def test_nothing_is_guessed_without_an_earlier_occurrence() -> None:
    assert Drafter().propose([1, 2, 3, 4], 5) == NO_DRAFT
    assert Drafter().propose([1], 5) == NO_DRAFT
    assert Drafter().propose([1, 1], 0) == NO_DRAFT


def test_wrong_guesses_end_guessing_and_it_is_tried_again_now_and_then() -> None:
    drafter, tokens = Drafter(), [1, 2, 3] * 3
    while (draft := drafter.propose(tokens, 4)).rate >= LEAST_RATE:
        drafter.learn(draft, 0)
    chances = [drafter.propose(tokens, 4) for _ in range(2 * PROBE_EVERY)]
    probes = [draft for draft in chances if draft != NO_DRAFT]
    assert len(probes) == 2
    assert all(len(draft.tokens) == 1 for draft in probes)


def test_right_probes_bring_guessing_back() -> None:
    drafter, tokens = Drafter(), [1, 2, 3] * 3
    for _ in range(20):
        drafter.learn(Draft((1,), 3, 0.5), 0)
    for n_chances in range(1, 10 * PROBE_EVERY):  # noqa: B007
        draft = drafter.propose(tokens, 4)
        if len(draft.tokens) > 1:
            break
        drafter.learn(draft, len(draft.tokens))
    assert PROBE_EVERY < n_chances < 8 * PROBE_EVERY


def test_lengths_of_the_end_are_judged_apart() -> None:
    drafter = Drafter()
    for _ in range(20):
        drafter.learn(Draft((1,), 1, 0.5), 0)
    assert drafter.propose([1, 2, 3, 9, 1], 4) == NO_DRAFT  # only the last token stood there before
    assert drafter.propose([1, 2, 3, 9, 1, 2, 3], 4).ngram == 3


def guesses(rate: float, n: int = MAX_DRAFT) -> Draft:
    return Draft(tuple(range(n)), 3, rate)


def test_the_surer_the_guesses_the_more_a_step_carries() -> None:
    counts = [lengths([guesses(rate)], 1, 100)[0] for rate in (0.0, 0.3, 0.5, 0.8, 0.95, 1.0)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[1] == 1  # a second row costs nothing
    assert counts[-1] == MAX_DRAFT


def test_guesses_share_what_a_step_may_hold_and_go_to_the_surest() -> None:
    assert sum(lengths([guesses(1.0), guesses(1.0)], 2, 5)) == 5
    many, few = lengths([guesses(0.95), guesses(0.5)], 2, 6)
    assert many > few
    assert lengths([guesses(0.9), NO_DRAFT], 2, 0) == [0, 0]


def test_many_conversations_leave_no_room_for_doubtful_guesses() -> None:
    assert sum(lengths([guesses(0.5)] * 8, 8, 100)) < 8 * lengths([guesses(0.5)], 1, 100)[0]
