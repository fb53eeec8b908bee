"""`mdi simulate`: conversations on a cluster that nobody has to own, in virtual time."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated

import typer

from mdi.cli import options as given
from mdi.cli.terminal import note, say
from mdi.errors import UserError

if TYPE_CHECKING:
    from mdi.simulate.run import Death

DEFAULT_SLOTS = 8  # conversations at once: more of them share steps whose rows are no longer free
_DEATH = re.compile(r"(.+)@([0-9]+(?:\.[0-9]+)?)", re.ASCII)


def simulate(
    nodes: Annotated[str, typer.Option("--nodes", metavar="FILE", help="The cluster, such as profiles/cluster-home.toml.")],
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="The shape of a known model.")] = "llama-7b",
    conversations: Annotated[int, typer.Option(metavar="N", help="How many answers are asked for.")] = 16,
    rate: Annotated[float, typer.Option(metavar="X", help="How many come a second, at random; 0: all at once.")] = 0.0,
    prompt_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of a prompt, on average.")] = 256,
    answer_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of an answer, on average.")] = 128,
    slots: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"Conversations at once; others wait.  [default: all, at most {DEFAULT_SLOTS}]"),
    ] = None,
    kill: Annotated[
        list[str] | None, typer.Option(metavar="NODE@SECONDS", help="This node dies then; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of lengths and arrivals.")] = 0,
    as_json: given.Json = False,
    objective: given.Objective = "throughput",
    busy_share: given.BusyShare = 0.5,
    pin: given.PinBlocks = None,
    exclude: given.Exclude = None,
    no_battery: given.NoBattery = False,
    min_nodes: given.MinNodes = 1,
    quant: given.Quant = "auto",
    block: given.Block = None,
    kv_type: given.KvType = "auto",
    ctx: given.Ctx = None,
) -> None:
    """Run conversations on a cluster on paper: throughput, waiting times, and how idle each stage is.

    The plan, the scheduler and the times are those of the real thing; what passes is virtual time.
    """
    from pathlib import Path

    from mdi.cli.options import parse_wishes
    from mdi.cli.starting import parse_kv_type
    from mdi.model.quantise import Quant
    from mdi.pipeline.api import StarterOptions
    from mdi.pipeline.choice import best_plan
    from mdi.plan.costs import Load
    from mdi.plan.explain import split_text
    from mdi.plan.plan import Objective
    from mdi.plan.text import counted
    from mdi.simulate.design import design
    from mdi.simulate.report import report, report_json, report_text
    from mdi.simulate.run import simulate as run
    from mdi.simulate.traffic import Traffic

    traffic = Traffic(conversations, prompt_tokens, answer_tokens, rate, seed=seed)
    deaths = tuple(_death(text) for text in kill or ())
    options = StarterOptions(
        model=model, quant=Quant(quant), block=block, kv_type=parse_kv_type(kv_type), ctx=ctx,
        n_slots=slots or min(conversations, DEFAULT_SLOTS),
        objective=Objective(objective), mixed_share=busy_share, min_nodes=min_nodes,
        wishes=parse_wishes(pin, exclude, no_battery=no_battery),
    )  # fmt: skip
    made = design(Path(nodes), options, Load(), prompt_tokens)
    row_bytes = 4 * made.workload.config.d_model
    requests = traffic.requests(made.workload.ctx)
    outcome = run(made.problem, made.plan, requests, lambda problem: best_plan(problem, options), row_bytes, deaths)
    told = report(outcome, len(made.problem.nodes))
    if as_json:
        say(json.dumps({"cluster": made.title, "model": model, "plan": made.plan.to_json(), **report_json(told, outcome)}))
        return
    say(f"{model} on {counted(len(made.plan.stages), 'device')} of: {made.title}")
    say(f"Blocks: {split_text(made.plan.counts)}\n")
    say(report_text(told, outcome))
    note("Predicted from data sheets and benchmarks of others, not measured: see docs/planning.md.")


def _death(text: str) -> Death:
    from mdi.simulate.run import Death

    match = _DEATH.fullmatch(text)
    if match is None or len(match[2]) > 12:
        raise UserError(f"--kill {text[:40]!r} is not a node and a time", hint="write it like --kill pi-2@30")
    return Death(match[1], float(match[2]))
