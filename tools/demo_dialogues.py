"""The demo model's dialogues: a grammar that speaks them, and the split that keeps held-out questions out of training.

Every turn has a `key`, and a hash of the key alone decides whether it may occur in training. Where the content carries the skill
(sums, differences, words to spell or turn round, lists, ranges, unknown names) the key is that content, whatever the phrasing;
where the answer has to be learned by heart (facts, products, small talk) the key is the question's text without case and
punctuation. Follow-up turns have keys too: what is held out as a question never occurs as a follow-up either.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tools import demo_grammar as grammar
from tools.demo_follow_ups import follow_up, introduction, recall
from tools.demo_grammar import Turn

HELD_OUT_PARTS = 10  # one key in ten is held out
MAX_TRIES = 1000  # draws until a turn falls on the wanted side of the split; one in ten does in the worst case
SHORT, LONG = (1, 1, 2, 3, 4, 5, 6, 8), (2, 8, 16, 24, 32, 48)  # turns of a conversation; 48 fill the context of 1024 tokens
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a small and friendly chat model.",
    "You are a helpful assistant. Answer briefly.",
    "Be kind and brief.",
)
SKILLS_BY_WEIGHT: tuple[tuple[Callable[[random.Random], Turn], float], ...] = (
    (grammar.addition, 2.4), (grammar.subtraction, 2.6), (grammar.multiplication, 1.2), (grammar.counting, 2.2),
    (grammar.reversed_list, 1.0), (grammar.spelling, 2.2), (grammar.reversed_word, 2.2), (grammar.countries, 1.8),
    (grammar.facts, 1.4), (grammar.unknown, 1.6), (grammar.small_talk, 0.8), (grammar.story, 0.3),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out prompt; `history` holds earlier (user, assistant) pairs, `check` tells whether an answer is right."""

    skill: str
    prompt: str
    check: Callable[[str], bool]
    history: tuple[tuple[str, str], ...] = ()


def is_held_out(key: str) -> bool:
    return hashlib.sha256(key.encode()).digest()[0] * HELD_OUT_PARTS < 256


def contains(expect: str) -> Callable[[str], bool]:
    """Whether an answer has `expect` in it as whole words, case aside."""
    pattern = re.compile(rf"(?<![\w-]){re.escape(expect)}(?![\w-])", re.IGNORECASE)
    return lambda answer: pattern.search(answer) is not None


def draw(rng: random.Random, make: Callable[[random.Random], Turn | None], *, held_out: bool) -> Turn | None:
    """The first turn that `make` gives on the wanted side of the split; None if it gives none."""
    for _ in range(MAX_TRIES):
        turn = make(rng)
        if turn is None or is_held_out(turn.key) == held_out:
            return turn
    return None


def conversation(rng: random.Random, turns_in_all: Sequence[int] = SHORT) -> list[Turn]:
    """A training conversation; none of its keys is held out. `turns_in_all`: lengths, each as likely as it is often there."""
    makers, weights = zip(*SKILLS_BY_WEIGHT, strict=True)
    turns: list[Turn] = []
    met: Turn | None = None
    for _ in range(rng.choice(turns_in_all)):
        turn = None
        if turns and rng.random() < 0.35:
            turn = draw(rng, lambda r: follow_up(r, turns[-1]), held_out=False)
        elif rng.random() < 0.03:
            met = turn = draw(rng, introduction, held_out=False)
        elif met and rng.random() < 0.25:
            turn = recall(rng, met)
        turn = turn or draw(rng, rng.choices(makers, weights)[0], held_out=False)
        assert turn is not None
        turns.append(turn)
    return turns


def heldout_questions(seed: int, per_skill: int) -> list[Question]:
    """`per_skill` single-turn questions of every skill, none of which any training conversation contains."""
    return list(_heldout(random.Random(f"held out {seed}"), per_skill))


def _heldout(rng: random.Random, per_skill: int) -> Iterator[Question]:
    for make, _ in SKILLS_BY_WEIGHT:
        for _ in range(per_skill):
            turn = draw(rng, make, held_out=True)
            assert turn is not None
            yield Question(turn.skill, turn.user, contains(turn.expect))


def heldout_late(seed: int, count: int, after_turns: int = 20) -> list[Question]:
    """`count` held-out questions, each late in a conversation: after `after_turns` others that were answered rightly."""
    rng = random.Random(f"late {seed}")
    makers = [make for make, _ in SKILLS_BY_WEIGHT]
    questions: list[Question] = []
    for number in range(count):
        history = tuple((turn.user, turn.answer) for turn in conversation(rng, (after_turns,)))
        turn = draw(rng, makers[number % len(makers)], held_out=True)
        assert turn is not None
        questions.append(Question("late", turn.user, contains(turn.expect), history))
    return questions


def heldout_followups(seed: int, count: int) -> list[Question]:
    """`count` follow-ups, each after a held-out question that was answered rightly."""
    rng = random.Random(f"follow-ups {seed}")
    makers = [make for make, _ in SKILLS_BY_WEIGHT] + [introduction]
    questions: list[Question] = []
    while len(questions) < count:
        first = draw(rng, rng.choice(makers), held_out=True)
        assert first is not None
        next_turn = recall(rng, first) if first.answer.startswith("Nice to meet") else follow_up(rng, first)
        if next_turn is not None:
            questions.append(Question("follow-up", next_turn.user, contains(next_turn.expect), ((first.user, first.answer),)))
    return questions
