"""What to compute next. Pure: it knows tokens and counts, no engine, no network, no clock.

One rule: every sequence has tokens, and a count of those that were sent on their way; a step takes rows so that each catches up.
Prefill in chunks, decoding, reuse of a common beginning and replay after a failure are all that rule. A sequence that catches up may
carry a draft behind its own tokens: guesses that the step's logits confirm or refuse. Refused ones need no clean-up anywhere, because
the next rows are written over them.

A replay goes in the rows of the first time. Kernels round differently by how many rows they compute: of MatMulNBits with 4 bits (x86-64
with AVX-512 VNNI) a row alone gives other bits than a row of a pair, and now and then the next layer rounds to another code for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cache

from mdi.engine.constraint import Guide
from mdi.engine.sampling import SamplingParams
from mdi.errors import ClusterError, InternalError, PromptTooLong
from mdi.pipeline.api import FinishReason
from mdi.pipeline.draft import MAX_DRAFT, NO_DRAFT, Draft, Drafter, lengths
from mdi.wire.frame import Row


@dataclass(frozen=True, slots=True)
class Sent:
    """A row as it was sent: `count` tokens from `position` on, of which those before the next row's position were kept."""

    position: int
    count: int


@dataclass(slots=True)
class Replay:
    """What is to be sent again: `rows`, of which `n_tokens` tokens were kept; with the last of them `draft`, if its result was lost."""

    rows: deque[Sent] = field(default_factory=deque)
    n_tokens: int = 0
    draft: Draft = NO_DRAFT

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def n_kept(self) -> int:
        """Tokens of the next row that were kept."""
        end = self.rows[1].position if len(self.rows) > 1 else self.n_tokens
        return end - self.rows[0].position


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer in the making. `tokens` (prompt and answer so far) with `params` is the whole truth about it.

    `drafter` None: no token is guessed. `draft` holds the guesses that are on their way, behind the `n_sent` tokens.
    """

    tokens: list[int]
    n_prompt: int
    n_limit: int  # tokens in all at which it ends
    stop_ids: frozenset[int]
    params: SamplingParams
    slot: int
    n_reused: int  # tokens of the prompt that were found in KV
    n_sent: int  # tokens that are in KV or on their way there
    drafter: Drafter | None = None
    guide: Guide | None = None
    draft: Draft = NO_DRAFT
    replay: Replay = field(default_factory=Replay)
    finish: FinishReason | None = None
    last_step: int = 0  # the number of the step that it was last in

    @property
    def n_waiting(self) -> int:
        return 0 if self.finish else len(self.tokens) - self.n_sent

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.n_prompt :]

    def accept(self, token: int) -> bool:
        """Takes the sampled next token. False when it ends the answer instead of being part of it.

        Raises UserError when the guide cannot follow it.
        """
        if token in self.stop_ids:
            self.finish = FinishReason.STOP
            return False
        self.tokens.append(token)
        if self.guide is not None and self.guide.is_complete(self.answer):
            self.finish = FinishReason.STOP
        elif len(self.tokens) >= self.n_limit:
            self.finish = FinishReason.LENGTH
        return True

    def propose(self) -> Draft:
        """Guesses at what follows: never a stop token, never past the limit or what the guide allows."""
        # With n guesses a step gives up to n + 1 tokens.
        n_most = min(MAX_DRAFT, self.n_limit - len(self.tokens) - 1)
        if self.drafter is None or n_most < 1:
            return NO_DRAFT
        forced = tuple(self.guide.forced(self.answer)[:n_most]) if self.guide is not None else ()
        draft = Draft(forced, None, 1.0) if forced else self.drafter.propose(self.tokens, n_most)
        n_useful = next((i for i, token in enumerate(draft.tokens) if token in self.stop_ids), len(draft.tokens))
        if self.guide is not None:
            n_useful = min(n_useful, self.guide.possible(self.answer, draft.tokens))
        return draft.first(n_useful)


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one micro-batch and whose they are, in the same order."""

    rows: tuple[Row, ...]
    sequences: tuple[Sequence, ...]

    @property
    def token_ids(self) -> list[int]:
        """Of all rows, one after another. To be asked before the step's result is taken."""
        ids: list[int] = []
        for row, sequence in zip(self.rows, self.sequences, strict=True):
            own = sequence.tokens[row.position : row.position + row.count]
            own += sequence.draft.tokens[: max(0, row.emit - 1)]
            ids += own + own[-1:] * (row.count - len(own))  # in the place of guesses that were refused the first time
        return ids


@dataclass(slots=True)
class _Slot:
    """A KV slot: the tokens whose KV it holds on every stage, the rows that put them there, and who uses it."""

    held: list[int] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)  # at most one for each token of the context
    owner: Sequence | None = None


class Scheduler:
    """Sequences over `n_slots` KV slots of `ctx` tokens; a step holds at most `chunk_tokens` tokens."""

    def __init__(self, *, n_slots: int, ctx: int, chunk_tokens: int, may_grow: bool = True) -> None:
        """`may_grow`: the model has more positions than `ctx`."""
        self._slots = [_Slot() for _ in range(n_slots)]
        self._ctx = ctx
        self._chunk_tokens = chunk_tokens
        self._may_grow = may_grow
        self._n_steps = 0
        self._rows_per_step: Callable[[int], int] | None = None

    def spread(self, rows_per_step: Callable[[int], int] | None) -> None:
        """From now on, when n conversations decode, a step carries tokens of `rows_per_step(n)` of them at most; of all with None.

        The others go in steps of their own, right behind: in a ring, several nodes then work at the same time.
        """
        self._rows_per_step = rows_per_step and cache(rows_per_step)

    def admit(
        self,
        prompt: Seq[int],
        params: SamplingParams,
        *,
        max_new: int | None = None,
        stop_ids: frozenset[int] = frozenset(),
        speculate: bool = False,
        guide: Guide | None = None,
    ) -> Sequence:
        """A new sequence in the free slot that shares the longest beginning with it. `speculate`: its steps may carry guesses.

        Raises PromptTooLong, or ClusterError when every slot is busy.
        """
        if len(prompt) >= self._ctx:
            raise PromptTooLong(
                f"the conversation has {len(prompt)} tokens, and the context {self._ctx}"
                + ("" if self._may_grow else ", all that the model has"),
                hint="start a new one (/reset), shorten the prompt" + (", or choose a larger --ctx" if self._may_grow else ""),
            )
        free = [i for i, slot in enumerate(self._slots) if slot.owner is None]
        if not free:
            raise ClusterError(f"all {len(self._slots)} conversations are busy", hint="wait for one to end")
        best = max(free, key=lambda i: (_common(self._slots[i].held, prompt), -len(self._slots[i].held)))
        slot = self._slots[best]
        # The last prompt token is computed even when it is held: its output is what the first new token is drawn from.
        n_reused = min(_common(slot.held, prompt), len(prompt) - 1)
        limit = self._ctx if max_new is None else min(self._ctx, len(prompt) + max_new)
        drafter = Drafter() if speculate else None
        sequence = Sequence(list(prompt), len(prompt), limit, stop_ids, params, best, n_reused, n_reused, drafter, guide)
        slot.owner = sequence
        del slot.held[n_reused:]
        slot.sent[:] = [row for row in slot.sent if row.position < n_reused]
        return sequence

    @property
    def has_work(self) -> bool:
        return self.n_waiting > 0

    @property
    def n_waiting(self) -> int:
        """Tokens that are to be sent. May be asked while another thread admits or releases: each owner is read once."""
        owners = [slot.owner for slot in self._slots]
        return sum([owner.n_waiting for owner in owners if owner is not None])

    def next_step(self) -> Step | None:
        """Rows for every sequence that waits, those with the least to do first, so that decoding passes before long prompts."""
        waiting = [slot.owner for slot in self._slots if slot.owner is not None and slot.owner.n_waiting]
        # Of those with as much to do, the one that has waited longest: none is passed over while others go round.
        waiting.sort(key=lambda sequence: (sequence.n_waiting, sequence.last_step))
        self._n_steps += 1
        again: list[Sequence] = []  # first: a row of theirs goes whole or not at all, and the first one always fits
        budget, most_decoding = self._chunk_tokens, self._most_decoding()
        for sequence in waiting:
            if sequence.replay and sequence.replay.rows[0].count <= budget:
                again.append(sequence)
                budget -= sequence.replay.rows[0].count
        taken: list[tuple[Sequence, int]] = []  # with the tokens that it sends
        for sequence in waiting:
            if sequence.replay or not (count := min(sequence.n_waiting, budget)):
                continue
            if sequence.n_waiting == 1:
                if most_decoding == 0:
                    continue
                most_decoding -= 1
            taken.append((sequence, count))
            budget -= count
        self._draft([sequence for sequence, count in taken if count == sequence.n_waiting], self._chunk_tokens - budget, budget)
        rows = [self._send_again(sequence) for sequence in again] + [self._send(sequence, count) for sequence, count in taken]
        return Step(tuple(rows), (*again, *(sequence for sequence, _ in taken))) if rows else None

    def _most_decoding(self) -> int:
        """How many sequences may have a single token in the next step."""
        if self._rows_per_step is None:
            return len(self._slots)
        owners = [slot.owner for slot in self._slots]
        decoding = sum(owner is not None and owner.finish is None and bool(owner.answer) for owner in owners)
        return self._rows_per_step(max(1, decoding))

    def _draft(self, sequences: list[Sequence], n_rows: int, budget: int) -> None:
        """Gives those that catch up in this step guesses to carry, within what is left of the step."""
        drafts = [sequence.propose() for sequence in sequences]
        counts = lengths(drafts, n_rows, budget)
        for sequence, draft, count in zip(sequences, drafts, counts, strict=True):
            sequence.draft = draft.first(count)

    def _send(self, sequence: Sequence, count: int) -> Row:
        return self._sent(sequence, count, count + len(sequence.draft.tokens))

    def _send_again(self, sequence: Sequence) -> Row:
        replay = sequence.replay
        n_kept = replay.n_kept
        if n_kept == sequence.n_waiting:  # its result never came
            sequence.draft, replay.draft = replay.draft, NO_DRAFT
        return self._sent(sequence, n_kept, replay.rows.popleft().count)

    def _sent(self, sequence: Sequence, n_own: int, count: int) -> Row:
        """A row of `count` tokens, the first `n_own` of which are the sequence's own. It emits when these are all that waited."""
        drafted, slot = sequence.draft.tokens, self._slots[sequence.slot]
        row = Row(sequence.slot, sequence.n_sent, count, 1 + len(drafted) if n_own == sequence.n_waiting else 0)
        slot.held += sequence.tokens[sequence.n_sent : sequence.n_sent + n_own]
        slot.held += drafted
        slot.sent.append(Sent(row.position, row.count))
        sequence.n_sent += n_own
        sequence.last_step = self._n_steps
        return row

    def settle(self, sequence: Sequence, n_accepted: int) -> None:
        """The draft has come back: its first `n_accepted` tokens are the sequence's own now, and in KV."""
        if sequence.drafter is not None:
            sequence.drafter.learn(sequence.draft, n_accepted)
        sequence.draft = NO_DRAFT
        sequence.n_sent += n_accepted
        del self._slots[sequence.slot].held[sequence.n_sent :]

    def forget(self) -> None:
        """KV and everything on its way is lost, as when the nodes change: each sequence is sent again from its first token.

        Accepted tokens stay, for they are the truth. Guesses on their way were neither right nor wrong, so nothing is learned of them
        until they have been sent again.
        """
        for slot in self._slots:
            if (owner := slot.owner) is not None:
                again = owner.replay
                if not again:
                    again.n_tokens = owner.n_sent
                if owner.draft.tokens:
                    again.draft = owner.draft
                again.rows.extendleft(reversed(slot.sent))
                owner.n_sent = 0
                owner.draft = NO_DRAFT
            slot.held.clear()
            slot.sent.clear()

    def release(self, sequence: Sequence) -> None:
        """Frees the slot; what it holds may serve the next sequence with the same beginning."""
        slot = self._slots[sequence.slot]
        if slot.owner is not sequence:
            raise InternalError("a sequence was released twice")
        slot.owner = None

    def check_integrity(self) -> None:
        """Held tokens are those that were sent, the guesses among them last, and none lies outside the context."""
        for slot in self._slots:
            owner = slot.owner
            if len(slot.held) > self._ctx or (
                owner is not None and slot.held != [*owner.tokens[: owner.n_sent], *owner.draft.tokens]
            ):
                raise InternalError("a slot's tokens are not its sequence's")


def _common(left: Seq[int], right: Seq[int]) -> int:
    """Length of the common beginning."""
    n = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        n += 1
    return n
