"""A starter inside a testbed that plans, opens rings and measures them, one JSON line for each: the MDI side of `make bench-plan`.

It lives as long as its input, so that rings are opened within a second or two, and one is open at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from mdi.cluster.home import Home
from mdi.errors import MdiError, UserError
from mdi.model.quantise import Quant
from mdi.pipeline.api import Progress, StarterOptions
from mdi.pipeline.choice import best_plan
from mdi.pipeline.starter import Starter, draw_plan, open_starter
from mdi.plan.baselines import alternatives
from mdi.plan.forecast import Forecast
from mdi.plan.plan import Objective
from tools.bench_plan.layouts import Layout
from tools.mdi_child import measure


@dataclass(slots=True)
class Service:
    """Answers requests. `options` are those of every plan and ring; a ring's layout is added."""

    options: StarterOptions
    home: Home
    rng: random.Random
    starter: Starter | None = None
    stack: AsyncExitStack | None = None

    async def plan(self, *, objectives: list[str], min_nodes: int = 1, refresh: bool = False) -> dict[str, Any]:
        """The best plan for each objective and every alternative, as layouts; how long measuring and each plan took."""
        await self.close()
        options = replace(self.options, min_nodes=min_nodes, refresh_profiles=refresh)
        started_s = time.perf_counter()
        planned = await draw_plan(options, self.home, _silent)
        drawn_s = time.perf_counter() - started_s
        plans, solve_s = {}, {}
        for name in objectives:
            started_s = time.perf_counter()
            plans[name] = Layout.of(best_plan(planned.problem, replace(options, objective=Objective(name)))).parts
            solve_s[name] = time.perf_counter() - started_s
        problem = planned.problem
        return {
            "plans": plans,
            "alternatives": {name: plan and Layout.of(plan).parts for name, plan in alternatives(problem).items()},
            "limits": {node.name: problem.block_limit(index) for index, node in enumerate(problem.nodes)},
            "n_blocks": problem.model.n_blocks,
            "drawn_s": drawn_s,
            "solve_s": solve_s,
        }

    async def open(
        self, *, layout: list[list[Any]], prompt_tokens: int, new_tokens: int, conversations: int = 1
    ) -> dict[str, Any]:
        """Brings that ring up, and says what its plan promises for such prompts and answers."""
        await self.close()
        self.stack = AsyncExitStack()
        options = replace(self.options, wishes=Layout.from_json(layout).wishes())
        started_s = time.perf_counter()
        self.starter = await self.stack.enter_async_context(open_starter(options, self.home, _silent))
        opened = Layout.of(self.starter.plan)
        if opened != Layout.from_json(layout):
            raise UserError(f"asked for {Layout.from_json(layout).text}, and got {opened.text}")
        forecast = Forecast(self.starter.problem, self.starter.plan.node_ids, self.starter.plan.counts)
        context = prompt_tokens + new_tokens // 2
        stages_s, hops_s = forecast.decode_parts_s(1, context)
        prefill_s, prefill_hops_s = forecast.prefill_parts_s(min(prompt_tokens, self.starter.problem.model.chunk_tokens), 0)
        return {
            "opened_s": time.perf_counter() - started_s,
            "decode_tokens_per_s": forecast.tokens_per_s(1, context),
            "ttft_s": forecast.ttft_s(prompt_tokens),
            "together_tokens_per_s": forecast.tokens_per_s(conversations, context),
            "stages_s": stages_s,
            "hops_s": hops_s,
            "prefill_stages_s": prefill_s,
            "prefill_hops_s": prefill_hops_s,
            "head_s": self.starter.problem.starter.decode_s,
        }

    async def measure(self, *, prompt_tokens: int, new_tokens: int, conversations: int = 1) -> dict[str, Any]:
        if self.starter is None:
            raise UserError("no ring is open", hint="ask for `open` first")
        sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "conversations": conversations}
        return await measure(self.starter, self.rng, **sizes) | {"layout": Layout.of(self.starter.plan).parts}

    async def close(self) -> dict[str, Any]:
        if self.stack is not None:
            stack, self.stack, self.starter = self.stack, None, None
            await stack.aclose()
        return {}

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        calls = {"plan": self.plan, "open": self.open, "measure": self.measure, "close": self.close}
        try:
            return await calls[request.pop("do")](**request)
        except MdiError as error:
            return {"error": f"{error}{f' ({error.hint})' if error.hint else ''}"}


def _silent(_: Progress) -> None:
    pass


async def serve(service: Service) -> None:
    loop = asyncio.get_running_loop()
    print(json.dumps({}), flush=True)
    try:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await service.answer(json.loads(line))), flush=True)
    finally:
        await service.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--quant", type=Quant, default=Quant.INT4)
    parser.add_argument("--ctx", type=int, required=True)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--peer", action="append", default=[])
    args = parser.parse_args()
    options = StarterOptions(
        model=args.model,
        quant=args.quant,
        ctx=args.ctx,
        n_slots=args.slots,
        peers=tuple(args.peer),
        discovery=False,
        threads=1,
    )
    asyncio.run(serve(Service(options, Home.open(), random.Random(0))))


if __name__ == "__main__":
    main()
