"""Tokens per second with and without prompt lookup, side by side, on answers that quote their prompt.

    python -m tools.bench_speculation [--shape tinyllama-1.1b ...]

Both take turns in one process, in every round both; a ratio is the median of the rounds' ratios. "same" says whether both gave the
same tokens in all rounds. Tasks: the built-in model asked for the same story twice in a conversation, a model of a real shape that recites
a text of its prompt (`tools/quoting.py`), and one whose answer never repeats, where guessing must cost nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
from rich.console import Console
from rich.table import Table

from mdi.cluster.home import Home
from mdi.engine.sampling import SamplingParams
from mdi.errors import MdiError
from mdi.model.chat import Message
from mdi.model.quantise import Quant
from mdi.pipeline.api import Answer, Request, StarterOptions
from mdi.pipeline.starter import Starter, open_starter
from tools.make_checkpoint import exit_with_error, make_checkpoint
from tools.quoting import make_quoting, text_ids
from tools.shapes import SHAPES, named_shape

QUESTION = "Tell me a story about a dragon."
SAMPLED = SamplingParams(temperature=0.7, min_p=0.05, seed=1)


@dataclass(slots=True)
class Task:
    """One prompt under one setting, and what the rounds gave: (without, with)."""

    name: str
    prompt: tuple[int, ...]
    params: SamplingParams
    new_tokens: int
    ignore_eos: bool = True
    rounds: list[tuple[Answer, Answer]] = field(default_factory=list)

    def row(self) -> tuple[str, ...]:
        plain, fast = ([answer.timings for answer in side] for side in zip(*self.rounds, strict=True))
        speeds = [[times.decode_tokens_per_s or 0.0 for times in side] for side in (plain, fast)]
        ratio = statistics.median(b / a for a, b in zip(*speeds, strict=True))
        right = f"{fast[-1].accepted_tokens} of {fast[-1].drafted_tokens}"
        same = all(a.token_ids == b.token_ids for a, b in self.rounds)
        medians = [f"{statistics.median(side):.1f}" for side in speeds]
        return (self.name, str(plain[-1].new_tokens), *medians, f"{ratio:.2f}x", right, "yes" if same else "NO")


async def ask(starter: Starter, task: Task, *, speculate: bool) -> Answer:
    request = Request(task.prompt, task.params, task.new_tokens, ignore_eos=task.ignore_eos, speculate=speculate)
    return [event async for event in starter.generate(request) if isinstance(event, Answer)][-1]


async def compete(starter: Starter, tasks: Sequence[Task], rounds: int) -> None:
    for task in tasks:
        await ask(starter, task, speculate=False)  # also puts the prompt into KV, for both
        for i in range(rounds):
            first = await ask(starter, task, speculate=bool(i % 2))
            second = await ask(starter, task, speculate=not i % 2)
            task.rounds.append((second, first) if i % 2 else (first, second))


async def built_in(args: argparse.Namespace, home: Home) -> list[Task]:
    async with open_starter(_options("demo", args), home, lambda _: None) as starter:
        encode = starter.model.encode_chat
        messages = [Message("user", QUESTION)]
        first = await ask(starter, Task("", tuple(encode(messages)), SamplingParams(), 200, ignore_eos=False), speculate=False)
        messages += [Message("assistant", first.text), Message("user", QUESTION)]
        tasks = [Task(f"demo: a story again, {args.quant}", tuple(encode(messages)), SamplingParams(), 200, ignore_eos=False)]
        await compete(starter, tasks, args.rounds)
    return tasks


async def recited(args: argparse.Namespace, home: Home, name: str) -> list[Task]:
    directory = args.directory / f"{name}-quoting"
    if not directory.exists():
        make_quoting(named_shape(name), directory)
    text = text_ids()
    async with open_starter(_options(str(directory), args), home, lambda _: None) as starter:
        tasks = [
            Task(f"{name}: recites its prompt, {args.quant}", text * 2, SamplingParams(), args.new),
            Task(f"{name}: the same, temperature 0.7", text * 2, SAMPLED, args.new),
        ]
        await compete(starter, tasks, args.rounds)
    return tasks


async def unquoted(args: argparse.Namespace, home: Home, name: str) -> list[Task]:
    directory = args.directory / name
    if not directory.exists():
        make_checkpoint(named_shape(name), directory)
    async with open_starter(_options(str(directory), args), home, lambda _: None) as starter:
        tasks = [Task(f"{name}: random text", tuple(range(300, 364)), SamplingParams(temperature=1.5, seed=2), args.new)]
        await compete(starter, tasks, args.rounds)
    return tasks


def _options(model: str, args: argparse.Namespace) -> StarterOptions:
    return StarterOptions(model, Quant(args.quant), ctx=1024, discovery=False, threads=args.threads)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench_speculation", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, nargs="*", default=["tinyllama-1.1b"])
    parser.add_argument("--directory", type=Path, default=Path(platformdirs.user_cache_dir("mdi-bench")))
    parser.add_argument("--quant", choices=[str(quant) for quant in Quant], default=str(Quant.INT4))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=128)
    args = parser.parse_args(argv)
    args.directory.mkdir(parents=True, exist_ok=True)
    table = Table("task", "tokens", "without", "with, tok/s", "ratio", "right", "same")
    try:
        home = Home(args.directory / "speculation-home").create()  # kept: it holds the converted weights
        tasks = asyncio.run(built_in(args, home))
        for name in args.shape:
            tasks += asyncio.run(recited(args, home, name)) + asyncio.run(unquoted(args, home, name))
    except MdiError as error:
        return exit_with_error(error)
    for task in tasks:
        table.add_row(*task.row())
    Console(width=120).print(table)
    return 0 if all("NO" not in task.row() for task in tasks) else 1


if __name__ == "__main__":
    sys.exit(main())
