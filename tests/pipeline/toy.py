"""A model of a few integers that is right only if KV is: every row's output depends on all tokens that the slot's KV holds before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mdi.engine.batch import Span
from mdi.engine.protocol import StageShape
from mdi.engine.sampling import SamplingParams, sample
from mdi.node.stage import LoadedStage, StageSpec
from mdi.pipeline.core import StarterCore, Turn
from mdi.pipeline.scheduler import Scheduler
from mdi.wire.frame import FrameLimits
from tests.node.test_stage import SPEC

VOCAB = 6
WIDTH = SPEC.config.d_model
PRIME = 8191  # all that is computed with stays below 2^24, which fp32 holds exactly


def features(tokens: Seq[int]) -> tuple[int, int, int]:
    """The last two tokens, and a hash of them all."""
    total = 7
    for token in tokens:
        total = (total * 31 + token + 1) % PRIME
    return tokens[-1], tokens[-2] if len(tokens) > 1 else 0, total


def logits_of(last: int, before: int, total: int) -> NDArray[np.float32]:
    """[VOCAB]. Mostly the last two tokens decide, so that texts repeat; sometimes the whole text does, so that they break off."""
    by_last = np.array([(last * 5 + before * 3 + token * 2) % VOCAB for token in range(VOCAB)], np.float32)
    by_all = np.array([(total * (token + 3)) % 97 for token in range(VOCAB)], np.float32) / 97
    return by_last + by_all * (6 if total % 5 == 0 else 0.5)


def reference(prompt: Seq[int], params: SamplingParams, max_new: int, ctx: int, stop_ids: frozenset[int]) -> list[int]:
    """The answer by its definition: one token after another, each from all before it."""
    tokens = list(prompt)
    while len(tokens) < min(ctx, len(prompt) + max_new):
        token = sample(logits_of(*features(tokens)), params, len(tokens) - len(prompt), tokens)
        if token in stop_ids:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


class ToyEmbedding:
    def rows(self, token_ids: Seq[int]) -> NDArray[np.float32]:
        hidden = np.zeros((len(token_ids), WIDTH), np.float32)
        hidden[:, 0] = token_ids
        return hidden


class ToyEngine:
    """KV holds tokens. Positions that were never written hold what no text has."""

    weight_bytes = kv_bytes = 0

    def __init__(self, n_slots: int, ctx: int) -> None:
        self._kv = np.full((n_slots, ctx), 1000, np.int64)

    def forward(self, spans: Seq[Span], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        out, row = hidden.copy(), 0
        for span in spans:
            kv = self._kv[span.slot]
            for position in range(span.position, span.position + span.count):
                kv[position] = int(hidden[row, 0])
                out[row, 1:4] = features(kv[: position + 1].tolist())
                row += 1
        return out


class ToyHead:
    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([logits_of(*(int(value) for value in row[1:4])) for row in hidden])


class ToyRing:
    """A starter's core and one worker with all blocks, and frames that wait between them."""

    def __init__(
        self, *, n_slots: int, ctx: int, chunk_tokens: int, max_in_flight: int, engine: type[ToyEngine] = ToyEngine
    ) -> None:
        spec: StageSpec = replace(SPEC, shape=StageShape(n_slots, ctx, 1), max_tokens=chunk_tokens)
        self.scheduler = Scheduler(n_slots=n_slots, ctx=ctx, chunk_tokens=chunk_tokens)
        self._stage = LoadedStage(spec, engine(n_slots, ctx))
        limits = FrameLimits(WIDTH, chunk_tokens, n_slots, ctx, "f32")
        self.core = StarterCore(
            self.scheduler,
            ToyEmbedding(),
            None,
            ToyHead(),
            epoch=spec.target.epoch,
            limits=limits,
            max_in_flight=max_in_flight,
        )
        self._results: deque[bytes] = deque()
        self._make_engine = engine
        self._spec, self._limits, self._max_in_flight = spec, limits, max_in_flight
        self.late: list[bytes] = []  # results of epochs that are over

    def begin_again(self, *, n_workers_left: int) -> None:
        """The worker dies with all that is in it and on its way; a new epoch begins on another one, or without any."""
        self.late += self._results
        self._results.clear()
        self.core.end_epoch()
        self.scheduler.check_integrity()
        target = replace(self._spec.target, epoch=self._spec.target.epoch + 1)
        self._spec = replace(self._spec, target=target)
        engine = self._make_engine(self._spec.shape.n_slots, self._spec.shape.ctx)
        if n_workers_left:
            self._stage = LoadedStage(self._spec, engine)
            self.core.begin_epoch(target.epoch, None, self._limits, self._max_in_flight)
        else:
            self.core.begin_epoch(target.epoch, engine, None, 1)

    def step(self, *, wait: bool) -> Turn | None:
        """Sends the next step, if there is one and `wait` is False, or takes the oldest result. None: there is nothing to do."""
        if self.core.can_send and not (wait and self._results):
            turn = self.core.turn()  # without workers it is finished there
        elif self._results:
            turn = self.core.turn(self._results.popleft())
        else:
            return None
        if turn.frame is not None:
            self._results.append(self._stage.compute(turn.frame))
        self.scheduler.check_integrity()
        return turn
