"""Guesses at the next tokens by prompt lookup: where the last tokens stood before, what followed them may follow again. Pure.

A step that carries the guesses along checks them all at once (`core.py`), for little more than the price of one token. No guess
changes an answer; it only costs rows when it is wrong, so the share that was right decides how many are made.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

MAX_DRAFT = 15  # tokens of one sequence in a step: twice as many would gain an eighth by the costs below, were every one right
NGRAMS = (3, 2, 1)  # lengths of what is looked up, longest first

# A step's time by its rows, in steps of one row: two cost what one does, each more this much (measured on `MatMulNBits`, int4,
# 2048x8192, 2 threads: 1 / 2 / 4 / 8 / 32 rows take 1 / 1 / 1.24 / 1.9 / 6). Fixed costs, such as hops, only make rows cheaper.
FREE_ROWS = 2
ROW_COST = 0.15

FIRST_RATE = 0.5  # assumed before anything is known
LEARNING = 1 / 8  # weight of one guess in the running rate: 7 wrong ones in a row silence the first rate, 13 that of certainty
LEAST_RATE = 0.2  # below it guessing costs more than it gives where two rows are not free: a slow link, fp32 weights
PROBE_EVERY = 16  # chances that are let pass before one token is guessed again, to see whether the text has changed


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed next tokens. `ngram` is what was looked up, None: not looked up; `rate` the expected share of right ones."""

    tokens: tuple[int, ...]
    ngram: int | None
    rate: float

    def first(self, n: int) -> Draft:
        return self if n >= len(self.tokens) else Draft(self.tokens[:n], self.ngram, self.rate)


NO_DRAFT = Draft((), None, 0.0)


def lookup(tokens: Sequence[int], ngrams: Sequence[int], n_most: int) -> tuple[tuple[int, ...], int] | None:
    """Up to `n_most` tokens that followed the latest earlier occurrence of the last `n`, and `n`: the first of `ngrams` that has one.

    An occurrence may overlap the end: then its continuation goes on into the guess, so a text that repeats itself is guessed at any
    length. Searched as bytes: 0.15 ms for 8192 tokens, where a Python loop over one length takes 1.4. Ids are 4 bytes, and a
    match must lie on their borders.
    """
    data = array("i", tokens).tobytes()
    width = array("i").itemsize
    for n in ngrams:
        if len(tokens) <= n:
            continue
        needle, end = data[-n * width :], len(data) - width  # the occurrence ends before the last token
        while (found := data.rfind(needle, 0, end)) >= 0:
            if found % width == 0:
                start = found // width + n
                period = len(tokens) - start
                return tuple(tokens[start + i % period] for i in range(n_most)), n
            end = found + len(needle) - 1
    return None


class Drafter:
    """Guesses for one sequence, and how often they were right, by the length of what was looked up."""

    def __init__(self) -> None:
        self.n_drafted = 0
        self.n_accepted = 0
        self._rates = dict.fromkeys(NGRAMS, FIRST_RATE)
        self._passed = dict.fromkeys(NGRAMS, 0)

    def propose(self, tokens: Sequence[int], n_most: int) -> Draft:
        """At most `n_most` guesses at what follows `tokens`; none while they do not pay."""
        found = lookup(tokens, NGRAMS, n_most) if n_most > 0 else None
        if found is None:
            return NO_DRAFT
        guess, ngram = found
        rate = self._rates[ngram]
        if rate >= LEAST_RATE:
            return Draft(guess, ngram, rate)
        self._passed[ngram] += 1
        if self._passed[ngram] < PROBE_EVERY:
            return NO_DRAFT
        self._passed[ngram] = 0
        return Draft(guess[:1], ngram, rate)

    def learn(self, draft: Draft, n_accepted: int) -> None:
        """The first `n_accepted` guesses were right, and the next one, if there is one, was wrong."""
        self.n_drafted += len(draft.tokens)
        self.n_accepted += n_accepted
        if draft.ngram is None:
            return
        for right in [1.0] * n_accepted + [0.0] * (n_accepted < len(draft.tokens)):
            self._rates[draft.ngram] += LEARNING * (right - self._rates[draft.ngram])


def lengths(drafts: Sequence[Draft], n_rows: int, n_most: int) -> list[int]:
    """How many tokens of each sequence's draft a step should carry that has `n_rows` rows without them; together at most `n_most`.

    One after another, the most probable first, each only if the step then gives more tokens per time than without it.
    """
    counts = [0] * len(drafts)
    n_expected = float(len(drafts))  # each sequence gets one token in any case
    while sum(counts) < n_most:
        chances = [draft.rate ** (n + 1) if n < len(draft.tokens) else 0.0 for draft, n in zip(drafts, counts, strict=True)]
        chance = max(chances, default=0.0)
        if (n_expected + chance) * _step_time(n_rows) <= n_expected * _step_time(n_rows + 1):
            break
        counts[chances.index(chance)] += 1
        n_expected += chance
        n_rows += 1
    return counts


def _step_time(n_rows: int) -> float:
    return 1.0 + ROW_COST * max(0, n_rows - FREE_ROWS)
