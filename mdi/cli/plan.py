"""`mdi plan`: which blocks would go where, and why; nothing is sent."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdi.cli import options as given
from mdi.cli.loop import run_async
from mdi.cli.progress import quiet, shown
from mdi.cli.terminal import note, say

if TYPE_CHECKING:
    from mdi.pipeline.api import StarterOptions
    from mdi.pipeline.starter import Planned


def plan(
    model: given.Model = "demo",
    explain: Annotated[bool, typer.Option("--explain", help="Say why, and what other plans would give.")] = False,
    as_json: given.Json = False,
    objective: given.Objective = "latency",
    split: given.Split = None,
    min_nodes: given.MinNodes = 1,
    quant: given.Quant = "auto",
    block: given.Block = None,
    kv_type: given.KvType = "auto",
    ctx: given.Ctx = None,
    peer: given.Peer = None,
    no_discovery: given.NoDiscovery = False,
    wait: given.Wait = None,
    threads: given.Threads = None,
    device: given.Device = None,
    max_memory: given.MaxMemory = None,
    refresh: given.Refresh = False,
) -> None:
    """Show what would run where, and how fast that should be."""
    from mdi.cli.starting import starter_options

    options = starter_options(
        model=model, quant=quant, block=block, kv_type=kv_type, ctx=ctx, objective=objective, min_nodes=min_nodes, split=split,
        peer=peer, discovery=not no_discovery, wait=wait, threads=threads, device=device, max_memory=max_memory, refresh=refresh,
    )  # fmt: skip
    run_async(_plan(options, explain=explain, as_json=as_json))


async def _plan(options: StarterOptions, *, explain: bool, as_json: bool) -> None:
    from mdi.cli.render import plan_text
    from mdi.cluster.home import Home
    from mdi.pipeline.starter import draw_plan
    from mdi.plan.explain import explain as explained

    with nullcontext(quiet) if as_json else shown() as on_progress:
        planned = await draw_plan(options, Home.open(), on_progress)
    for problem in planned.problems:
        note(problem)
    if as_json:
        say(json.dumps(_as_json(planned, explain=explain)))
    else:
        say(explained(planned.problem, planned.plan) if explain else plan_text(planned.problem, planned.plan))


def _as_json(planned: Planned, *, explain: bool) -> dict[str, Any]:
    from mdi.plan.baselines import alternatives
    from mdi.plan.reason import why

    shown = {"model": planned.model_name, **planned.plan.to_json()}
    if not explain:
        return shown
    others = {name: other and other.to_json() for name, other in alternatives(planned.problem).items()}
    return {**shown, "why": why(planned.problem, planned.plan), "alternatives": others}
