"""`mdi plan`: which blocks would go where, and why; nothing is sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdi.cli import options as given
from mdi.cli.fetching import here
from mdi.cli.loop import run_async
from mdi.cli.progress import quiet, shown
from mdi.cli.terminal import note, say
from mdi.errors import UserError

if TYPE_CHECKING:
    from mdi.pipeline.api import StarterOptions
    from mdi.plan.costs import Problem
    from mdi.plan.plan import Plan
    from mdi.plan.wishes import Pin


def plan(
    model: given.Model = "demo",
    explain: Annotated[bool, typer.Option("--explain", help="Say why, and what other plans would give.")] = False,
    as_json: given.Json = False,
    objective: given.Objective = "latency",
    busy_share: given.BusyShare = 0.5,
    split: given.Split = None,
    pin: given.PinBlocks = None,
    exclude: given.Exclude = None,
    no_battery: given.NoBattery = False,
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
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw the ring into this file as SVG.", dir_okay=False)
    ] = None,
    nodes: Annotated[
        list[str] | None,
        typer.Option("--nodes", metavar="FILE", help="Plan for the devices of these files: --nodes profiles/cluster-*.toml"),
    ] = None,
    more_nodes: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", hidden=True)] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="With --nodes: conversations that share each step.", min=1)] = 1,
    filled: Annotated[
        int, typer.Option(metavar="N", help="With --nodes: tokens before the one that is generated.", min=0)
    ] = 128,
    prompt_tokens: Annotated[
        int, typer.Option(metavar="N", help="With --nodes: the prompt that the first token is predicted for.", min=1)
    ] = 128,
    offline: given.Offline = False,
) -> None:
    """Show what would run where, and how fast that should be.

    With --nodes nothing is measured and no device is needed: the model is one of the known shapes (--model llama-7b), and each file
    describes a cluster.
    """
    from mdi.cli.starting import starter_options

    if more_nodes and not nodes:
        raise UserError(f"{more_nodes[0]!r} has no place here", hint="cluster files come after --nodes")
    if not nodes:
        model = here(model, offline=offline, silent=as_json, weights=False)
    options = starter_options(
        model=model, quant=quant, block=block, kv_type=kv_type, ctx=ctx, objective=objective, busy_share=busy_share,
        min_nodes=min_nodes, split=split, pin=pin, exclude=exclude, no_battery=no_battery, peer=peer,
        discovery=not no_discovery, wait=wait, threads=threads, device=device, max_memory=max_memory, refresh=refresh,
    )  # fmt: skip
    if nodes:
        from mdi.cli.paper import plan_files
        from mdi.plan.costs import Load

        files, load = [*nodes, *(more_nodes or ())], Load(batch, filled)
        plan_files(files, options, load, prompt_tokens, explain=explain, as_json=as_json, svg=svg)
        return
    run_async(_plan(options, explain=explain, as_json=as_json, svg=svg))


async def _plan(options: StarterOptions, *, explain: bool, as_json: bool, svg: Path | None) -> None:
    from mdi.cli.render import plan_text
    from mdi.cluster.home import Home
    from mdi.pipeline.starter import draw_plan
    from mdi.plan.explain import explain as explained

    with nullcontext(quiet) if as_json else shown() as on_progress:
        planned = await draw_plan(options, Home.open(), on_progress)
    for problem in planned.problems:
        note(problem)
    pins = options.wishes.pins
    if svg is not None:
        draw(svg, planned.problem, planned.plan, planned.model_name)
    if as_json:
        say(json.dumps(plan_json(planned.model_name, planned.problem, planned.plan, pins, explain=explain)))
    else:
        say(explained(planned.problem, planned.plan, pins) if explain else plan_text(planned.problem, planned.plan))


def plan_json(model: str, problem: Problem, plan: Plan, pins: Sequence[Pin], *, explain: bool) -> dict[str, Any]:
    """What `--json` prints."""
    from mdi.plan.baselines import alternatives
    from mdi.plan.explain import CONVERSATIONS
    from mdi.plan.forecast import Forecast
    from mdi.plan.reason import why

    shown = {"model": model, **plan.to_json()}
    if not explain:
        return shown
    others = {name: other and other.to_json() for name, other in alternatives(problem).items()}
    forecast = Forecast(problem, plan.node_ids, plan.counts)
    rates = {str(n): forecast.tokens_per_s(n) for n in CONVERSATIONS}
    return {**shown, "why": why(problem, plan, pins), "tokens_per_s_by_conversations": rates, "alternatives": others}


def draw(path: Path, problem: Problem, plan: Plan, model: str) -> None:
    """Writes the ring's picture. Raises UserError when the file cannot be written."""
    from mdi.plan.drawing import svg
    from mdi.plan.text import counted

    try:
        path.write_text(svg(problem, plan, f"{model} on {counted(len(plan.stages), 'device')}"), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", hint="choose another file for --svg") from error
