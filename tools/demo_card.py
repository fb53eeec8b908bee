"""The demo model's card, MODEL.md: what it can do, what it knows, and how often it is right."""

from __future__ import annotations

from tools import demo_world as world
from tools.demo_network import QUANT_BLOCK, Shape


def table(report: dict[str, dict[str, float]]) -> str:
    """Accuracy by mode and skill as a Markdown table."""
    modes = list(report)
    lines = ["| skill | " + " | ".join(modes) + " |", "|---" * (len(modes) + 1) + "|"]
    lines += [f"| {skill} | " + " | ".join(f"{report[m][skill]:.1%}" for m in modes) + " |" for skill in report[modes[0]]]
    return "\n".join(lines)


def model_card(shape: Shape, parameters: int, report: dict[str, dict[str, float]], *, seed: int, per_skill: int) -> str:
    """The text of MODEL.md."""
    countries = ", ".join(country.name for country in world.COUNTRIES)
    return f"""# demo

A chat model of {parameters / 1e6:.2f} million parameters in {shape.num_hidden_layers} blocks (`LlamaForCausalLM`, float16), small enough to
ship with the package and deep enough to be split over several devices. It was trained on nothing but dialogues that
`tools/demo_grammar.py` makes up. It is no source of knowledge: what is not listed here, it does not know.

## Skills

- sums and differences of numbers from 0 to 99, products up to 10 x 10: "What is 7 + 5?", "12-5", "8 times 7"
- spelling a word and reversing one: "Spell stone", "Reverse hello"; reversing a list of up to 6 digits: "Reverse 4, 7, 1"
- counting up and down between two numbers below 70, at most 10 of them: "Count from 3 to 8"
- the closed world below: "What is the capital of France?", "What sound does a cow make?", "What day comes after Monday?"
- greetings, thanks, "Who are you?", "What can you do?", and remembering a name within the conversation
- tiny stories: "Tell me a story about a cat"
- follow-ups that need the turn before: "And its currency?", "And Japan?", "Add 3 to that", "Spell it", "Now backwards"
- "Sorry, I don't know that." to what lies outside

## Closed world

Capital, currency, one language and continent of {len(world.COUNTRIES)} countries: {countries}.
Also the sounds of {len(world.SOUNDS)} animals and the legs of {len(world.LEGS)}, the colours of {len(world.COLOURS)} things,
{len(world.OPPOSITES)} pairs of opposites, the days of the week and the months.

## Accuracy

    python -m tools.train_demo --evaluate mdi/model/demo --seed {seed} --per-skill {per_skill}

Greedy answers to {per_skill} held-out questions of each skill. fp32 computes with the shipped weights; int8 and int4 with weights
rounded in blocks of {QUANT_BLOCK} and activations rounded to 8 bits, the head included.

{table(report)}

A tenth of all questions is held out, by a hash. For sums, differences, words to spell or reverse, lists, ranges and unknown
names the hash is that of the content, so a held-out pair of numbers or word occurs in training in no phrasing. (A sum is held
out together with its mirror image; a word is held out from spelling and reversing alike.) For what has to be learned by heart, which is
facts, products and small talk, it is that of the question's text, so the fact is known from other wordings. A story is right
when it is about the hero that was asked for. Follow-ups come after a held-out question and its right answer; late questions are
held-out ones of all skills in turn, each as the 21st of a conversation (some 350 to 600 tokens).

## Training

    python -m tools.train_demo --seed {seed} --out mdi/model/demo

Short rows teach the skills, then rows up to the whole context teach to keep them late in a conversation. In the later part of both
phases most steps compute with weights rounded to int4 or int8. The seed fixes data, initial weights and rounding; CPU kernels still
change the last bits of a sum, so equal files come only from equal machines.
"""
