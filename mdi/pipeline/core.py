"""The starter's part of a step: embedding and first blocks before it leaves, norm, head and sampling when it comes back.

Synchronous, and all of it in one call per frame: the starter's loop hands over to the engine thread once per token, not four times.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mdi.engine.logits import TokenLogprobs, logprobs
from mdi.engine.protocol import Engine, Head
from mdi.engine.sampling import sample
from mdi.engine.thread import BRIEF_S, BRIEF_TOKENS
from mdi.errors import FrameError, InternalError, UserError
from mdi.model.packed import Embedding
from mdi.pipeline.api import FinishReason
from mdi.pipeline.scheduler import Scheduler, Sequence, Step
from mdi.wire.frame import Frame, FrameLimits, decode, encode


@dataclass(frozen=True, slots=True)
class NewToken:
    """`token_id` None: the sequence ended without another one. `is_last`: no token follows.

    `made_s`, by time.perf_counter, is when its step's logits were there: whoever reads it may be late, and get several at once.
    """

    sequence: Sequence
    token_id: int | None
    is_last: bool
    made_s: float
    logprobs: TokenLogprobs | None = None


@dataclass(slots=True)
class Turn:
    """What one call of the core gave: a frame for the first worker, and tokens for the conversations.

    `failures`: sequences that ended for a reason of their own, such as a constraint that cannot be followed.
    """

    frame: bytes | None = None
    tokens: list[NewToken] = field(default_factory=list)
    failures: list[tuple[Sequence, UserError]] = field(default_factory=list)


class StarterCore:
    """One caller at a time: the engine thread. `limits` None: there are no workers, and each step is finished here.

    It outlives its epoch: `end_epoch` makes it let go of everything that belongs to a plan, `begin_epoch` gives it the next one's.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        embedding: Embedding,
        local: Engine | None,
        head: Head,
        *,
        epoch: int = 0,
        limits: FrameLimits | None = None,
        max_in_flight: int = 1,
    ) -> None:
        self._scheduler = scheduler
        self._embedding = embedding
        self._local = local
        self._head = head
        self._epoch = epoch
        self._limits = limits
        self._max_in_flight = max_in_flight
        self._in_flight: deque[tuple[int, Step]] = deque()
        self._short_s = math.inf  # how long the last turn took that began a short step
        self.steps = 0  # of this epoch
        self.local_steps = 0  # of all epochs
        self.busy_s = 0.0  # in `turn`, of all epochs

    def end_epoch(self) -> None:
        """What is on its way is lost, and the starter's own blocks are let go. Nothing is sent until `begin_epoch`."""
        self._in_flight.clear()
        self._max_in_flight = 0
        self._local = None
        self._short_s = math.inf
        self._scheduler.forget()

    def begin_epoch(
        self,
        epoch: int,
        local: Engine | None,
        limits: FrameLimits | None,
        max_in_flight: int,
        rows_per_step: Callable[[int], int] | None = None,
    ) -> None:
        """The next plan is loaded: every sequence is replayed from its tokens, and goes on. `rows_per_step`: see `Scheduler.spread`."""
        self._epoch = epoch
        self._local = local
        self._limits = limits
        self._max_in_flight = max_in_flight
        self._scheduler.spread(rows_per_step)
        self.steps = 0

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def can_send(self) -> bool:
        return self._scheduler.has_work and len(self._in_flight) < self._max_in_flight

    @property
    def is_brief(self) -> bool:
        """Whether `turn` will probably take less than BRIEF_S, and nothing else is to do meanwhile."""
        return self._short_s < BRIEF_S and len(self._in_flight) <= 1 and self._scheduler.n_waiting <= BRIEF_TOKENS

    def turn(self, result: bytes | None = None) -> Turn:
        """Takes a result frame, if there is one, and starts the next step, if there is one.

        Raises FrameError for a result that is not that of the oldest step in flight.
        """
        started, turn = time.perf_counter(), Turn()
        if result is not None:
            self._finish(result, turn)
        is_short = self.can_send and self._start(turn) <= BRIEF_TOKENS
        took_s = time.perf_counter() - started
        self.busy_s += took_s
        if is_short:
            self._short_s = took_s
        return turn

    def _start(self, turn: Turn) -> int:
        """The tokens of the step."""
        step = self._scheduler.next_step()
        if step is None:
            raise InternalError("a step without rows")
        hidden = self._embedding.rows(step.token_ids)
        if self._local is not None:
            hidden = self._local.forward(step.rows, hidden)
            self.local_steps += 1
        frame = Frame(self._epoch, self.steps, step.rows, (), hidden)
        self.steps += 1
        if self._limits is None:
            self._sample(step, np.asarray(frame.emitted(hidden).hidden, np.float32), turn)
        else:
            self._in_flight.append((frame.step, step))
            turn.frame = encode(frame)
        return len(hidden)

    def _finish(self, data: bytes, turn: Turn) -> None:
        if self._limits is None or not self._in_flight:
            raise FrameError("a result came that nobody waits for")
        number, step = self._in_flight[0]
        frame = decode(data, self._limits, check_finite=True)
        wanted = tuple((row.slot, row.position + row.count - row.emit, row.emit) for row in step.rows if row.emit)
        if (frame.epoch, frame.step) != (self._epoch, number):
            raise FrameError(f"the result of step {frame.step} of epoch {frame.epoch} came, not that of step {number}")
        if tuple((row.slot, row.position, row.count) for row in frame.rows) != wanted:
            raise FrameError(f"the result of step {number} holds other rows than were asked for")
        self._in_flight.popleft()
        self._sample(step, np.asarray(frame.hidden, np.float32), turn)

    def _sample(self, step: Step, hidden: NDArray[np.float32], turn: Turn) -> None:
        """`hidden` [emitted rows, d_model]: for each sequence that has caught up one row, and one more for each token it guessed."""
        live: list[tuple[Sequence, int]] = []  # with its rows of the logits
        wanted: list[int] = []
        end = 0
        for row, sequence in zip(step.rows, step.sequences, strict=True):
            end += row.emit
            if row.emit and sequence.finish is None:
                live.append((sequence, row.emit))
                wanted += range(end - row.emit, end)
        if not live:
            return
        logits = self._head.logits(hidden if len(wanted) == len(hidden) else hidden[wanted])
        made_s = time.perf_counter()
        start = 0
        for sequence, n_rows in live:
            try:
                self._take(sequence, logits[start : start + n_rows], made_s, turn)
            except UserError as error:
                sequence.finish = FinishReason.CANCELLED
                turn.failures.append((sequence, error))
            start += n_rows
            if sequence.finish is not None:
                self._scheduler.release(sequence)

    def _take(self, sequence: Sequence, logits: NDArray[np.float32], made_s: float, turn: Turn) -> None:
        """Samples the next token of a sequence, and further ones as long as its guesses were right. `logits` [1 + guesses, vocab].

        The answer is exactly the one without guesses. Row i was computed from the tokens and the first i guesses, and is looked at
        only when these are the sampled tokens: so it holds what the step of one token would have. The token itself is a function of
        logits, settings, tokens and index, with no generator that goes on from draw to draw; so a guess is right if and only if it
        is the token that would be drawn, at any temperature, and nothing has to be corrected as where drafts are distributions.
        """
        params, guesses, n_accepted = sequence.params, sequence.draft.tokens, 0
        try:
            for i, row in enumerate(logits):
                allowed = None if sequence.guide is None else sequence.guide.allowed(sequence.answer)
                token = sample(row, params, len(sequence.tokens) - sequence.n_prompt, sequence.tokens, allowed)
                told = None if params.logprobs is None else logprobs(row, token, params.logprobs)
                kept = sequence.accept(token)
                turn.tokens.append(NewToken(sequence, token if kept else None, sequence.finish is not None, made_s, told))
                right = kept and i < len(guesses) and guesses[i] == token
                n_accepted += right
                if not right or sequence.finish is not None:
                    break
        finally:
            self._scheduler.settle(sequence, n_accepted)
