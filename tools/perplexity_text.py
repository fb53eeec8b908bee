"""Texts to measure a model with, as token ids: dialogues that the demo model never saw, a model's own words, or a file."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdi.engine.sampling import SamplingParams, sample
from mdi.errors import UserError
from mdi.model.chat import Message
from mdi.model.config import ModelConfig
from mdi.model.source import Model
from mdi.wire.frame import Row
from tools.demo_dialogues import SKILLS_BY_WEIGHT, draw

Logits = Callable[[Sequence[Row], Sequence[int]], NDArray[np.float32]]
TURNS = 3  # of a dialogue: about 60 tokens
SEED = 0


@dataclass(frozen=True, slots=True)
class Text:
    """Sequences of token ids, and for each id whether its prediction counts (that of a sequence's first never does)."""

    origin: str
    sequences: tuple[tuple[int, ...], ...]
    scored: tuple[tuple[bool, ...], ...]

    def __post_init__(self) -> None:
        if not self.n_scored:
            raise UserError(f"{self.origin}: there is no token to predict", hint="give a longer text")

    @property
    def n_scored(self) -> int:
        return sum(sum(scored[1:]) for scored in self.scored)

    @classmethod
    def of_whole(cls, origin: str, sequences: Sequence[Sequence[int]]) -> Text:
        """All tokens count."""
        return cls(origin, tuple(tuple(ids) for ids in sequences), tuple((True,) * len(ids) for ids in sequences))


def dialogues(model: Model, n_tokens: int) -> Text:
    """Held-out dialogues of the demo model, about `n_tokens` of what the assistant says: that is what it was trained to predict."""
    rng = random.Random(f"perplexity {SEED}")
    makers, weights = zip(*SKILLS_BY_WEIGHT, strict=True)
    sequences: list[tuple[int, ...]] = []
    scored: list[tuple[bool, ...]] = []
    while sum(map(sum, scored)) < n_tokens:
        messages: list[Message] = []
        ids: list[int] = []
        said: list[bool] = []
        for _ in range(TURNS):
            turn = draw(rng, rng.choices(makers, weights)[0], held_out=True)
            assert turn is not None
            messages.append(Message("user", turn.user))
            asked = model.encode_chat(messages)
            said += [False] * (len(asked) - len(ids))
            messages.append(Message("assistant", turn.answer))
            ids = model.tokenizer.encode(model.chat.render(messages, add_generation_prompt=False))
            said += [True] * (len(ids) - len(said))
        sequences.append(tuple(ids))
        scored.append(tuple(said))
    return Text("held-out dialogues", tuple(sequences), tuple(scored))


def own_words(config: ModelConfig, logits: Logits, n_sequences: int, length: int) -> Text:
    """Sequences that the model speaks at temperature 1 from its first token on, all at the same time."""
    first = config.bos_id if config.bos_id is not None else next(iter(config.eos_ids), 0)
    sequences = [[first] for _ in range(n_sequences)]
    for position in range(length - 1):
        rows = [Row(slot, position, 1, 0) for slot in range(n_sequences)]
        found = logits(rows, [ids[-1] for ids in sequences])
        for slot, ids in enumerate(sequences):
            ids.append(sample(found[slot], SamplingParams(temperature=1.0, seed=SEED + slot), position))
    return Text.of_whole("the fp32 model's own words", sequences)


def pieces(model: Model, text: str, n_tokens: int, length: int) -> Text:
    """The beginning of a text, in sequences that each start anew."""
    ids = model.tokenizer.encode(text)[:n_tokens]
    first = [] if model.tokenizer.bos_id is None else [model.tokenizer.bos_id]
    return Text.of_whole("a file", [first + ids[start : start + length] for start in range(0, len(ids), length)])
