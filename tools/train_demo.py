"""Trains the built-in chat model `demo` on dialogues that it speaks to itself, and prints how well it answers held-out questions.

    python -m tools.train_demo --seed 0 --out mdi/model/demo      # trains; the result depends on the seed and the step counts
    python -m tools.train_demo --evaluate mdi/model/demo --json   # fp32, fake int8 and fake int4 accuracy by skill

Training has two phases: short rows, which are cheap, teach the skills; long ones then teach to keep them late in a conversation. The
second begins from the files that the first left, so it can be repeated alone (`--phase long`).

The seed fixes data, initial weights and rounding choices. CPU kernels and thread counts still change the last bits of a sum, so
equal files come only from equal machines.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_weights
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from tools.demo_card import model_card, table
from tools.demo_dialogues import (
    LONG,
    SHORT,
    SYSTEM_PROMPTS,
    Question,
    conversation,
    heldout_followups,
    heldout_late,
    heldout_questions,
)
from tools.demo_network import Network, Shape, fake_quantise
from tools.demo_optimiser import Muon
from tools.demo_tokenizer import ASSISTANT, BOS, END, PAD, SYSTEM, USER, render, token_id, train_tokenizer, write_tokenizer

TOKENS_PER_STEP = 2048
MATRIX_RATE, OTHER_RATE = 4e-3, 3e-3  # peak learning rates: Muon for the blocks' matrices, AdamW for embedding and norms
WARMUP_STEPS = 100
HALVES = 2
SAVE_EVERY = 1000
ANSWER_LIMIT = 96  # tokens; the longest right answer has about 60
NOT_SINGLE = ("follow-up", "late")  # skills that need what was said before
MODES: dict[str, tuple[int | None, bool]] = {"fp32": (None, False), "int8": (8, True), "int4": (4, True)}


@dataclass(frozen=True, slots=True)
class Phase:
    """`lengths`: a row's tokens, for each equal part of the phase. `rate`: of the peak learning rates."""

    name: str
    steps: int
    lengths: tuple[int, ...]
    turns: tuple[int, ...]
    rate: float
    quantised_from: float  # the part of the phase after which most steps see rounded weights


SKILLS = Phase("skills", 8000, (128,) * 14 + (256, 512), SHORT, 1.0, 0.7)
LATE = Phase("long", 1600, (512,) * 5 + (1024,) * 3, LONG, 0.35, 0.1)
PHASES = {phase.name: phase for phase in (SKILLS, LATE)}


# --- data


def token_stream(
    tokenizer: Tokenizer, seed: int, turns_in_all: Sequence[int] = SHORT
) -> Iterator[tuple[list[int], list[bool]]]:
    """Training conversations as (ids, whether the id is one that the assistant says)."""
    rng = random.Random(f"training {seed}" if turns_in_all == SHORT else f"training {seed} {turns_in_all}")
    end = token_id(tokenizer, END)
    while True:
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.08 else None
        turns = conversation(rng, turns_in_all)
        ids = tokenizer.encode(BOS + (f"{SYSTEM}{system}{END}" if system else ""), add_special_tokens=False).ids
        said = [False] * len(ids)
        asked = tokenizer.encode_batch([f"{USER}{t.user}{END}{ASSISTANT}" for t in turns], add_special_tokens=False)
        answered = tokenizer.encode_batch([t.answer for t in turns], add_special_tokens=False)
        for ask, answer in zip(asked, answered, strict=True):
            ids += [*ask.ids, *answer.ids, end]
            said += [False] * len(ask.ids) + [True] * (len(answer.ids) + 1)
        yield ids, said


def batches(tokenizer: Tokenizer, seed: int, phase: Phase, lengths: Iterator[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows [B, T] of conversations laid end to end, and their targets [B, T] with -100 where nobody is to be imitated."""
    stream = token_stream(tokenizer, seed, phase.turns)
    ids: list[int] = []
    said: list[bool] = []
    for length in lengths:
        rows = TOKENS_PER_STEP // length
        needed = rows * length + 1
        while len(ids) < needed:
            more_ids, more_said = next(stream)
            ids += more_ids
            said += more_said
        inputs, targets = torch.tensor(ids[: needed - 1]), torch.tensor(ids[1:needed])
        targets[~torch.tensor(said[1:needed])] = -100
        del ids[: needed - 1], said[: needed - 1]
        yield inputs.view(rows, length), targets.view(rows, length)


# --- training


def learning_rate(step: int, steps: int) -> float:
    """The part of the peak rate: a warm-up, then a cosine down to nothing."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


class Twin:
    """A copy of the network that does the arithmetic of training: rounded weights in, gradients out.

    Rounding the copy and not the original is the straight-through estimator. Blocks are compiled for one thread each: two
    threads with half of the rows beat one operator spread over two cores.
    """

    def __init__(self, network: Network) -> None:
        self.original = network
        self.copy = Network(network.shape)
        for block in self.copy.model.layers:
            block.compile(dynamic=False)
        self.parameters = list(self.copy.parameters())
        self.rows: set[torch.Size] = set()

    @torch.no_grad()
    def refresh(self, bits: int | None, block: int) -> None:
        """Takes over the original's weights, rounded as `Network.simulate` would."""
        for (name, source), target in zip(self.original.named_parameters(), self.parameters, strict=True):
            rounded = bits is not None and source.ndim == 2 and "embed" not in name
            target.copy_(fake_quantise(source, bits, block) if rounded and bits is not None else source)
        self.copy.head_bits, self.copy.head_block = bits, block

    def gradients(self, inputs: Tensor, targets: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        """The loss on some rows, and the gradient of every parameter."""
        wanted = targets != -100
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.copy.head(self.copy.hidden(inputs)[wanted])
        loss = functional.cross_entropy(logits.float(), targets[wanted])
        return loss.item(), torch.autograd.grad(loss, self.parameters)

    def step(self, pool: ThreadPoolExecutor, inputs: Tensor, targets: Tensor) -> float:
        """Leaves the mean gradient of all rows in the original's parameters and returns the loss."""
        halves = list(zip(inputs.chunk(HALVES), targets.chunk(HALVES), strict=True))
        if halves[0][0].shape not in self.rows:  # compile in one thread
            self.rows.add(halves[0][0].shape)
            self.gradients(*halves[0])
        results = list(pool.map(lambda half: self.gradients(*half), halves))
        for index, parameter in enumerate(self.original.parameters()):
            parameter.grad = torch.stack([gradients[index] for _, gradients in results]).mean(0)
        return sum(loss for loss, _ in results) / HALVES


def train(out: Path, *, seed: int, phase: Phase) -> None:
    """Trains for a phase and leaves a model in `out`, a newer one every 1000 steps. The first phase begins from nothing."""
    torch.manual_seed(seed)
    rng = random.Random(f"rounding {seed}")
    steps = phase.steps
    if phase is SKILLS:
        network = Network(Shape())
        tokenizer = train_tokenizer(seed, network.shape.vocab_size)
    else:
        network, tokenizer = load(out)
    twin = Twin(network)
    muon = Muon(p for name, p in network.named_parameters() if p.ndim == 2 and "embed" not in name)
    others = [p for name, p in network.named_parameters() if p.ndim == 1 or "embed" in name]
    adam = torch.optim.AdamW(others, betas=(0.9, 0.97), weight_decay=0.0)
    lengths = (phase.lengths[len(phase.lengths) * step // steps] for step in range(steps))
    started, losses = time.monotonic(), []
    print(
        f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, phase {phase.name}, {steps} steps", flush=True
    )
    pool = ThreadPoolExecutor(HALVES, initializer=torch.set_num_threads, initargs=(1,))
    for step, (inputs, targets) in enumerate(batches(tokenizer, seed, phase, lengths)):
        rounding = step > phase.quantised_from * steps and rng.random() < 0.75
        twin.refresh(rng.choice((4, 4, 4, 8)) if rounding else None, rng.choice((64, 128)))
        losses.append(twin.step(pool, inputs, targets))
        rate = phase.rate * learning_rate(step, steps)
        muon.step(rate * MATRIX_RATE, pool)
        adam.param_groups[0]["lr"] = rate * OTHER_RATE
        adam.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss {sum(losses[-50:]) / 50:.4f} {time.monotonic() - started:.0f} s", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save(out, network, tokenizer)
            report = accuracy(network, tokenizer, heldout_questions(seed, 20))
            print(json.dumps(report), flush=True)


def save(out: Path, network: Network, tokenizer: Tokenizer) -> None:
    """Writes a Hugging Face checkpoint: config, float16 weights, tokenizer and chat template."""
    out.mkdir(parents=True, exist_ok=True)
    bos, eos, pad = (token_id(tokenizer, t) for t in (BOS, END, PAD))
    config = network.shape.hf_config(bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "do_sample": False,
        "max_new_tokens": ANSWER_LIMIT,
    }
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    write_tokenizer(out, tokenizer, network.shape.max_position_embeddings)
    weights = {name: p.detach().to(torch.float16).contiguous() for name, p in network.state_dict().items()}
    partial = out / "model.safetensors.part"
    partial.write_bytes(save_weights(weights, metadata={"format": "pt"}))
    partial.replace(out / "model.safetensors")


def load(directory: Path) -> tuple[Network, Tokenizer]:
    config = json.loads((directory / "config.json").read_text())
    network = Network(Shape(**{name: config[name] for name in Shape.__dataclass_fields__}))
    network.load_state_dict({name: w.float() for name, w in load_file(directory / "model.safetensors").items()})
    return network, Tokenizer.from_file(str(directory / "tokenizer.json"))


# --- evaluation


@torch.inference_mode()
def answers(network: Network, tokenizer: Tokenizer, questions: list[Question]) -> list[str]:
    """Greedy answers; prompts of equal length are answered together."""
    end = token_id(tokenizer, END)
    prompts = [tokenizer.encode(render(q.prompt, q.history), add_special_tokens=False).ids for q in questions]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    results = [""] * len(prompts)
    for members in by_length.values():
        past: list[list[Tensor]] = [[] for _ in range(network.shape.num_hidden_layers)]
        ids = torch.tensor([prompts[i] for i in members])
        said: list[Tensor] = []
        finished = torch.zeros(len(members), dtype=torch.bool)
        while len(said) < ANSWER_LIMIT and not finished.all():
            ids = network.head(network.hidden(ids, past)[:, -1:]).argmax(-1)
            said.append(ids[:, 0])
            finished |= ids[:, 0] == end
        for index, row in zip(members, torch.stack(said, 1).tolist(), strict=True):
            results[index] = tokenizer.decode(row[: row.index(end)] if end in row else row)
    return results


def accuracy(
    network: Network, tokenizer: Tokenizer, questions: list[Question], *, show: bool = False
) -> dict[str, dict[str, float]]:
    """By mode (fp32, int8, int4) and skill, and over all skills: the part of the questions that are answered rightly."""
    report: dict[str, dict[str, float]] = {}
    for mode, (bits, int8_activations) in MODES.items():
        network.simulate(bits, int8_activations=int8_activations)
        right: dict[str, list[bool]] = defaultdict(list)
        for question, answer in zip(questions, answers(network, tokenizer, questions), strict=True):
            right[question.skill].append(question.check(answer))
            if show and not right[question.skill][-1]:
                print(f"{mode} {question.skill}: {question.prompt!r} -> {answer!r}")
        single = [ok for skill, marks in right.items() if skill not in NOT_SINGLE for ok in marks]
        report[mode] = {skill: sum(marks) / len(marks) for skill, marks in right.items()} | {
            "all single-turn": sum(single) / len(single)
        }
    network.simulate(None)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in demo model, or evaluate one.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phase", choices=PHASES, help="one phase of the training only")
    parser.add_argument("--out", type=Path, default=Path("mdi/model/demo"))
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="evaluate the model in DIR instead of training")
    parser.add_argument("--per-skill", type=int, default=200, help="held-out questions of each skill")
    parser.add_argument("--show", action="store_true", help="print the wrong answers")
    parser.add_argument("--card", action="store_true", help="write the accuracy into DIR/MODEL.md, as training does")
    parser.add_argument("--json", action="store_true", help="print the accuracy as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for phase in () if args.evaluate else [PHASES[args.phase]] if args.phase else PHASES.values():
        train(args.out, seed=args.seed, phase=phase)
    network, tokenizer = load(args.evaluate or args.out)
    questions = heldout_questions(args.seed, args.per_skill) + heldout_followups(args.seed, args.per_skill)
    questions += heldout_late(args.seed, args.per_skill)
    report = accuracy(network, tokenizer, questions, show=args.show)
    if args.evaluate is None or args.card:
        count = sum(p.numel() for p in network.parameters())
        card = model_card(network.shape, count, report, seed=args.seed, per_skill=args.per_skill)
        ((args.evaluate or args.out) / "MODEL.md").write_text(card)
    print(json.dumps(report, indent=2) if args.json else table(report))


if __name__ == "__main__":
    main()
