"""A starter in a process of its own that answers measurement commands: the MDI side of `tools/bench`.

Reads lines of JSON (`prompt_tokens`, `new_tokens`, `conversations`) and answers each with one line of seconds, so that a benchmark
can take turns between engines while both stay loaded. It measures what a user gets: tokens through the public `Starter.generate`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdi.cluster.home import Home
from mdi.model.quantise import Quant
from mdi.pipeline.api import Answer, Progress, Request, StarterOptions
from mdi.pipeline.starter import Starter, open_starter
from mdi.plan.plan import Objective


async def serve(options: StarterOptions, home: Home) -> None:
    loop = asyncio.get_running_loop()
    async with open_starter(options, home, _silent) as starter:
        facts = {"plan": starter.plan.to_json(), "pid": os.getpid()}
        print(json.dumps(facts), flush=True)
        rng = random.Random(0)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await measure(starter, rng, **json.loads(line))), flush=True)


def _silent(_: Progress) -> None:
    pass


async def measure(
    starter: Starter, rng: random.Random, *, prompt_tokens: int, new_tokens: int, conversations: int = 1
) -> dict[str, Any]:
    """Seconds to the first token (median over conversations), and tokens per second of all of them together after it.

    `together_tokens_per_s`: the same while all of them decode, with no prompt among them.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_answer(starter, _prompt(starter, rng, prompt_tokens), new_tokens)) for _ in range(conversations)
        ]
    answers, times_s = zip(*(task.result() for task in tasks), strict=True)
    decode_s = max(answer.timings.total_s for answer in answers) - min(answer.timings.ttft_s for answer in answers)
    return {
        "ttft_s": statistics.median(answer.timings.ttft_s for answer in answers),
        "decode_tokens_per_s": answers[0].timings.decode_tokens_per_s
        if conversations == 1
        else conversations * (new_tokens - 1) / decode_s,
        "together_tokens_per_s": together(times_s),
    }


def together(times_s: Sequence[Sequence[float]]) -> float | None:
    """Tokens per second of all answers, by the times of their tokens, from the last first token to the first last one.

    None when one ended before another began.
    """
    start, stop = max(times[0] for times in times_s), min(times[-1] for times in times_s)
    counted = sum(start < time_s <= stop for times in times_s for time_s in times)
    return counted / (stop - start) if stop > start else None


def _prompt(starter: Starter, rng: random.Random, n_tokens: int) -> tuple[int, ...]:
    """Random ids: nothing of it is in KV already."""
    return tuple(rng.randrange(starter.model.config.vocab_size) for _ in range(n_tokens))


async def _answer(starter: Starter, prompt: tuple[int, ...], new_tokens: int) -> tuple[Answer, list[float]]:
    """The answer, and when each of its tokens came."""
    times_s: list[float] = []
    async for event in starter.generate(Request(prompt, max_tokens=new_tokens, ignore_eos=True, speculate=False)):
        if isinstance(event, Answer):
            return event, times_s
        if event.token_id is not None:
            times_s.append(time.perf_counter())
    raise AssertionError("an answer ended without an Answer")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quant", type=Quant, default=Quant.INT4)
    parser.add_argument("--block", type=int, help="what the model's size suggests when absent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", required=True, help="such as 0 or 0,1")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--split", help="blocks of each node, such as 8,8; alone when absent")
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--min-nodes", type=int, default=1)
    parser.add_argument("--objective", type=Objective, default=Objective.LATENCY)
    args = parser.parse_args()
    os.sched_setaffinity(0, {int(core) for core in args.cores.split(",")})
    split = tuple(int(count) for count in args.split.split(",")) if args.split else None
    options = StarterOptions(
        model=args.model,
        quant=args.quant,
        block=args.block,
        ctx=args.ctx,
        n_slots=args.slots,
        objective=args.objective,
        split=split,
        min_nodes=args.min_nodes,
        peers=tuple(args.peer),
        discovery=False,
        threads=args.threads,
    )
    asyncio.run(serve(options, Home(args.home).create()))


if __name__ == "__main__":
    main()
