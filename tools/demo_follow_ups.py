"""Turns that only make sense after another one: the grammar's second half."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from tools import demo_world as world
from tools.demo_grammar import (
    RELATIONS,
    Turn,
    backwards_turn,
    count_turn,
    fact_turn,
    made_up_word,
    phrase,
    spelled_turn,
    story_turn,
    sum_turn,
)


def introduction(rng: random.Random) -> Turn:
    name = rng.choice(world.PEOPLE) if rng.random() < 0.7 else made_up_word(rng).capitalize()
    user = phrase(rng, ("My name is {}.", "I am {}.", "Call me {}.", "Hi, my name is {}.", "Hello, I am {}."), "\0").replace(
        "\0", name
    )
    return Turn("follow-up", user, f"Nice to meet you, {name}!", name, f"name {name.lower()}")


def recall(rng: random.Random, met: Turn) -> Turn:
    asks = ("What is my name?", "What's my name?", "Do you know my name?", "Who am I?", "Do you remember my name?")
    return Turn("follow-up", phrase(rng, asks), f"Your name is {met.expect}.", met.expect, "")


def follow_up(rng: random.Random, last: Turn) -> Turn | None:
    """A question that only the turn before makes clear, or None where nothing can follow."""
    ways: list[Callable[[random.Random, Turn], Turn]] = []
    if last.number is not None and 0 <= last.number <= 99:
        ways += [_and_then] * 2
    if last.country is not None:
        ways += [_its, _its] + ([_and_for] if last.relation else [])
    if last.word is not None and " " not in last.word:
        ways += [_spell_it, _reverse_it] if last.skill == "spelling" else [_spell_it]
    if last.span is not None:
        ways += [_count_back]
    if last.hero is not None:
        ways += [_whose_story, _another]
    if last.day in world.DAYS:
        ways += [_day_after]
    return replace(rng.choice(ways)(rng, last), skill="follow-up") if ways else None


def _and_then(rng: random.Random, last: Turn) -> Turn:
    a, b, sign = last.number or 0, rng.randint(1, 10), rng.choice("++--x")
    if (sign == "x" and max(a, b) > 10) or (sign == "-" and b > a):
        sign = "+"
    asks = {"+": ("Add {} to that.", "Now add {}.", "Plus {}?", "Add {}.", "And {} more?", "Add {} to it."),
            "-": ("Subtract {} from that.", "Now subtract {}.", "Minus {}?", "Take {} away.", "Subtract {}."),
            "x": ("Times {}?", "Multiply that by {}.", "Now times {}.", "Multiply it by {}.")}[sign]  # fmt: skip
    turn = sum_turn("", phrase(rng, asks, str(b)), a, sign, b)
    return turn if sign != "x" else replace(turn, key="")


def _its(rng: random.Random, last: Turn) -> Turn:
    assert last.country is not None
    relation = rng.choice([r for r in RELATIONS if r != last.relation])
    asks = {"capital": ("And its capital?", "What is its capital?", "And the capital?", "What about the capital?"),
            "currency": ("And its currency?", "What is its currency?", "What money do they use there?", "And the currency?"),
            "language": ("And its language?", "What language do they speak there?", "And the language?", "What do people speak there?"),
            "continent": ("And its continent?", "Which continent is it on?", "And where is it?", "Where is that?")}[relation]  # fmt: skip
    return fact_turn(phrase(rng, asks), last.country, relation, "")


def _and_for(rng: random.Random, last: Turn) -> Turn:
    country = rng.choice(world.COUNTRIES)
    return fact_turn(
        phrase(rng, ("And {}?", "What about {}?", "And of {}?", "How about {}?"), country.name), country, str(last.relation), ""
    )


def _spell_it(rng: random.Random, last: Turn) -> Turn:
    return spelled_turn(
        phrase(rng, ("Spell it.", "Spell that.", "How do you spell it?", "How do you spell that?", "Can you spell it?")),
        str(last.word),
    )


def _reverse_it(rng: random.Random, last: Turn) -> Turn:
    return backwards_turn(phrase(rng, ("Now backwards.", "Reverse it.", "And backwards?", "Reverse that.")), str(last.word))


def _count_back(rng: random.Random, last: Turn) -> Turn:
    first, last_number = last.span or (0, 0)
    return count_turn(phrase(rng, ("Now backwards.", "And backwards?", "And back?", "Reverse it.")), last_number, first)


def _whose_story(rng: random.Random, last: Turn) -> Turn:
    asks = ("Who was it about?", "Who was the story about?", "What was the name?", "Who was that?")
    return Turn("", phrase(rng, asks), f"It was about a {last.hero}.", str(last.hero), "")


def _another(rng: random.Random, last: Turn) -> Turn:
    return story_turn(
        rng, phrase(rng, ("Another one.", "Tell me another.", "One more, please.", "Again!")), str(last.hero).split()[0], ""
    )


def _day_after(rng: random.Random, last: Turn) -> Turn:
    named = str(last.day)
    other = world.DAYS[(world.DAYS.index(named) + 1) % 7]
    return Turn(
        "",
        phrase(rng, ("And after that?", "And then?", "And the day after that?")),
        f"{other} comes after {named}.",
        other,
        "",
        word=other,
        day=other,
    )
