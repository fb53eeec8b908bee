"""How long an answer stands still when a worker is killed: `python -m tools.kill_trials --trials N`.

Each trial lets the built-in model, split over this process and real daemons, answer a prompt, and kills one daemon with SIGKILL after
a random token; greedy and sampled answers by turns. Every answer is compared with that of an undisturbed run. Printed is the distribution
of the time from the kill to the next token, and how many answers differed. The exit code is 0 if none did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from mdi.engine.sampling import SamplingParams
from mdi.pipeline.api import Answer, Piece, Request, StarterOptions
from mdi.pipeline.starter import Starter, open_starter

START_TIMEOUT_S = 60.0
TRIAL_TIMEOUT_S = 120.0
NEW_TOKENS = 48
CTX = 256
LAST_TOKENS = 4  # of an answer may all be on their way when a worker dies, guessed in one step
NO_END = ((1, -100.0),)  # the end of a turn is never sampled: the answer is as long as it may be
PROMPTS = ("Tell me about the cow and the capital of France.", "My name is Anna. What is 7 + 5?", "Spell cat, and then dog.")
TEMPERATURE = 0.9
PERCENTILES = (0, 50, 90, 99, 100)


@dataclass
class Node:
    """A daemon that is started again after each death, with its packs and its identity."""

    name: str
    home: Home
    port: int | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        arguments = ["--host", "127.0.0.1", "--threads", "1", "--no-discovery"] + (
            ["--port", str(self.port)] if self.port else []
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mdi.cli.app", "node", "start", "--name", self.name, *arguments],
            env=os.environ | {"MDI_HOME": str(self.home.path), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ends_s = time.monotonic() + START_TIMEOUT_S
        while (running := self.home.running()) is None or running.pid != self.process.pid:
            if time.monotonic() > ends_s or self.process.poll() is not None:
                raise SystemExit(f"{self.name} did not start")
            time.sleep(0.02)
        self.port = running.port

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True, slots=True)
class Trial:
    """One answer with a death in it. `waited_s` is the longest wait for a token from the kill on; `recoveries` is how many there were."""

    victim: str
    token: int
    sampled: bool
    waited_s: float
    recoveries: int
    is_equal: bool


def settings(sampled: bool, seed: int) -> SamplingParams:
    return SamplingParams(TEMPERATURE, seed=seed, logit_bias=NO_END) if sampled else SamplingParams(logit_bias=NO_END)


async def answer(
    starter: Starter, prompt: str, params: SamplingParams, victim: Node | None = None, token: int = 0
) -> tuple[tuple[int, ...], float]:
    """The tokens, and the longest wait for one in seconds after `victim` was killed, which is after `token` of them.

    Not simply the wait for the next one: that may have been on its way already.
    """
    request = Request(tuple(starter.model.tokenizer.encode_prompt(prompt)), params, max_tokens=NEW_TOKENS)
    count, waited_s, last_s = 0, 0.0, None
    async with asyncio.timeout(TRIAL_TIMEOUT_S):
        async for event in starter.generate(request):
            if isinstance(event, Answer):
                return event.token_ids, waited_s
            assert isinstance(event, Piece)
            if event.token_id is None:
                continue
            count += 1
            if last_s is not None:
                now_s = time.perf_counter()
                waited_s, last_s = max(waited_s, now_s - last_s), now_s
            if victim is not None and count == token:
                victim.kill()
                last_s = time.perf_counter()
    raise SystemExit("an answer did not end")


async def trials(directory: Path, n_trials: int, n_workers: int, seed: int) -> list[Trial]:
    key, rng = ClusterKey.generate(), random.Random(seed)
    homes = [Home(directory / name).create() for name in ("starter", *(f"worker-{n + 1}" for n in range(n_workers)))]
    for home in homes:
        key.save(home)
    nodes = [Node(home.path.name, home) for home in homes[1:]]
    known: dict[tuple[str, SamplingParams], tuple[int, ...]] = {}
    found: list[Trial] = []
    try:
        for number in range(n_trials):
            for node in nodes:
                node.start()
            options = StarterOptions(
                peers=tuple(f"127.0.0.1:{node.port}" for node in nodes),
                discovery=False, wait_s=0.1, threads=1, ctx=CTX, min_nodes=1 + n_workers,
            )  # fmt: skip
            prompt, sampled = rng.choice(PROMPTS), bool(number % 2)
            params = settings(sampled, rng.randrange(4))
            async with open_starter(options, homes[0], lambda _: None) as starter:
                if (prompt, params) not in known:
                    known[prompt, params], _ = await answer(starter, prompt, params)
            # A new starter: else the prompt would be in KV from the undisturbed run, in other rows than the first time.
            async with open_starter(options, homes[0], lambda _: None) as starter:
                victim, token = rng.choice(nodes), rng.randint(1, NEW_TOKENS - LAST_TOKENS)
                tokens, waited_s = await answer(starter, prompt, params, victim, token)
                recoveries = len(starter.recoveries)
            found.append(Trial(victim.name, token, sampled, waited_s, recoveries, tokens == known[prompt, params]))
            _show(number, found[-1])
    finally:
        for node in nodes:
            node.end()
    return found


def _show(number: int, trial: Trial) -> None:
    kind = "sampled" if trial.sampled else "greedy"
    outcome = "equal" if trial.is_equal else "DIFFERENT"
    print(
        f"{number + 1:4} {trial.victim} after token {trial.token:2} {kind:8} {trial.waited_s * 1000:6.0f} ms {outcome}",
        flush=True,
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def summary(found: Sequence[Trial]) -> dict[str, object]:
    waited = [trial.waited_s for trial in found]
    return {
        "trials": len(found),
        "different": sum(not trial.is_equal for trial in found),
        "different_greedy": sum(not trial.is_equal and not trial.sampled for trial in found),
        "without_recovery": sum(trial.recoveries == 0 for trial in found),
        "kill_to_next_token_s": {f"p{percent}": round(percentile(waited, percent), 3) for percent in PERCENTILES},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=100, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mdi-kill-trials-", ignore_cleanup_errors=True) as directory:
        found = asyncio.run(trials(Path(directory), args.trials, args.workers, args.seed))
    print(json.dumps(summary(found)))
    return int(any(not trial.is_equal for trial in found))


if __name__ == "__main__":
    raise SystemExit(main())
