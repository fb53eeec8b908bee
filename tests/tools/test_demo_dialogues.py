"""The demo model's dialogues keep what they hold out, say what is true, and the shipped weights answer them."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
import torch

import mdi.model.demo
from tools.demo_dialogues import (
    SKILLS_BY_WEIGHT,
    contains,
    conversation,
    draw,
    heldout_followups,
    heldout_questions,
    is_held_out,
)
from tools.demo_grammar import Turn, normalise
from tools.demo_network import Network, fake_quantise
from tools.demo_tokenizer import render
from tools.train_demo import MODES, accuracy, answers, load, token_stream

SHIPPED = Path(mdi.model.demo.__file__).parent


@pytest.fixture(scope="module")
def turns() -> list[Turn]:
    rng = random.Random(11)
    return [turn for _ in range(6000) for turn in conversation(rng)]


def test_no_held_out_question_occurs_in_training(turns: list[Turn]) -> None:
    held_out = {normalise(q.prompt) for q in heldout_questions(0, 300)}
    held_out |= {normalise(asked) for q in heldout_followups(0, 300) for asked, _ in q.history}
    assert not held_out & {normalise(turn.user) for turn in turns}
    assert not [turn.key for turn in turns if is_held_out(turn.key)]


def test_held_out_words_and_sums_occur_in_no_phrasing(turns: list[Turn]) -> None:
    rng = random.Random(12)
    asked = {turn.key for turn in turns}
    for make, _ in SKILLS_BY_WEIGHT:
        turn = draw(rng, make, held_out=True)
        assert turn is not None
        assert turn.key not in asked


def test_questions_depend_on_the_seed_alone_and_cover_every_skill_equally() -> None:
    first, again, other = (heldout_questions(seed, 5) for seed in (3, 3, 4))
    assert [q.prompt for q in first] == [q.prompt for q in again]
    assert [q.prompt for q in first] != [q.prompt for q in other]
    assert set(Counter(q.skill for q in first).values()) == {5}
    assert len(first) == 5 * len(SKILLS_BY_WEIGHT)


def test_sums_in_the_answers_are_true(turns: list[Turn]) -> None:
    sums = [m.groups() for turn in turns if (m := re.fullmatch(r"(\d+) ([+x-]) (\d+) = (-?\d+)\.", turn.answer))]
    assert {sign for _, sign, _, _ in sums} == {"+", "-", "x"}
    for a, sign, b, result in sums:
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign] == int(result)


def test_a_check_takes_the_right_answer_and_no_other(turns: list[Turn]) -> None:
    for turn in turns[:500]:
        assert contains(turn.expect)(turn.answer), turn
        assert not contains(turn.expect)("Sorry, nothing."), turn
    assert contains("= 12")("7 + 5 = 12.")
    assert not contains("= 12")("7 + 5 = 120.")
    assert not contains("s-t-o-n-e")("s-t-o-n-e-s.")
    assert not contains("3, 4, 5.")("3, 4, 5, 6.")


def test_follow_ups_come_after_a_question() -> None:
    questions = heldout_followups(1, 60)
    assert all(len(q.history) == 1 and q.history[0][1] for q in questions)
    assert len({q.prompt for q in questions}) > 20


def test_the_chat_template_says_what_training_saw() -> None:
    config = json.loads((SHIPPED / "tokenizer_config.json").read_text())
    messages = [
        {"role": "user", "content": "7+5"},
        {"role": "assistant", "content": "7 + 5 = 12."},
        {"role": "user", "content": "Add 3 to that."},
    ]
    template = jinja2.Environment(autoescape=False).from_string(config["chat_template"])
    text = template.render(messages=messages, bos_token=config["bos_token"], add_generation_prompt=True)
    assert text == render("Add 3 to that.", (("7+5", "7 + 5 = 12."),))


def test_training_imitates_the_assistant_only() -> None:
    _, tokenizer = load(SHIPPED)
    ids, said = next(token_stream(tokenizer, 0))
    spoken = tokenizer.decode([i for i, own in zip(ids, said, strict=True) if own], skip_special_tokens=False)
    assert len(ids) == len(said)
    assert spoken.endswith("<|end|>")
    assert "<|user|>" not in spoken


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_keeps_a_blocks_largest_value_and_passes_the_gradient_through(bits: int) -> None:
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rounded = fake_quantise(weight, bits, 128)
    rounded.sum().backward()
    blocks, exact = rounded.detach().view(6, 2, 128), weight.detach().view(6, 2, 128)
    peak = exact.abs().argmax(-1, keepdim=True)
    assert torch.allclose(blocks.gather(-1, peak), exact.gather(-1, peak))
    assert all(len(set(row.round(decimals=5).tolist())) <= 2**bits for row in blocks.flatten(0, 1))
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))


@pytest.fixture(scope="module")
def shipped() -> Iterator[Network]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at this size more threads only wait for each other
    yield load(SHIPPED)[0]
    torch.set_num_threads(threads)


def test_the_shipped_model_can_be_split_and_is_small(shipped: Network) -> None:
    assert shipped.shape.num_hidden_layers >= 8
    assert 2e6 <= sum(p.numel() for p in shipped.parameters()) <= 5e6
    assert sum(f.stat().st_size for f in SHIPPED.iterdir() if f.is_file()) < 12_000_000


def test_the_shipped_model_answers_held_out_questions_in_every_precision(shipped: Network) -> None:
    _, tokenizer = load(SHIPPED)
    report = accuracy(shipped, tokenizer, heldout_questions(0, 12))  # MODEL.md has the accuracy over many more
    assert set(report) == set(MODES)
    assert min(marks["all single-turn"] for marks in report.values()) >= 0.95


def test_the_shipped_model_follows_up(shipped: Network) -> None:
    _, tokenizer = load(SHIPPED)
    questions = heldout_followups(0, 60)
    right = [q.check(a) for q, a in zip(questions, answers(shipped, tokenizer, questions), strict=True)]
    assert sum(right) / len(right) >= 0.9
