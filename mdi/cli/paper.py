"""`mdi plan --nodes FILE`: plans for devices that exist on paper only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mdi.cli.plan import draw, plan_json
from mdi.cli.render import plan_text
from mdi.cli.terminal import note, say
from mdi.errors import ClusterError, UserError
from mdi.pipeline.api import StarterOptions
from mdi.plan.costs import Load
from mdi.plan.explain import explain as explained
from mdi.plan.explain import split_text, table
from mdi.plan.text import milliseconds
from mdi.simulate.design import Design, design

HEADINGS = ("cluster", "nodes", "blocks", "one conversation", "ring full", "first token")


def plan_files(
    files: Sequence[str],
    options: StarterOptions,
    load: Load,
    prompt_tokens: int,
    *,
    explain: bool,
    as_json: bool,
    svg: Path | None,
) -> None:
    """One file is planned as `mdi plan` does; of several, each is, and a table compares them.

    Raises UserError for what a file says wrong, ClusterError for a single cluster that cannot hold the model.
    """
    if svg is not None and len(files) > 1:
        raise UserError("--svg draws one cluster, and there are several files", hint="give one file after --nodes")
    designs: list[Design | ClusterError] = []
    for file in files:
        try:
            designs.append(design(Path(file), options, load, prompt_tokens))
        except ClusterError as error:
            if len(files) == 1:
                raise
            designs.append(error)
    pins = options.wishes.pins
    made = [each for each in designs if isinstance(each, Design)]
    if svg is not None:
        draw(svg, made[0].problem, made[0].plan, options.model)
    if as_json:
        told = [
            {"cluster": file, "problem": str(each)}
            if isinstance(each, ClusterError)
            else {"cluster": each.title, **plan_json(options.model, each.problem, each.plan, pins, explain=explain)}
            for file, each in zip(files, designs, strict=True)
        ]
        say(json.dumps(told[0] if len(files) == 1 else told))
        return
    for each in made:
        shown = explained(each.problem, each.plan, pins) if explain else plan_text(each.problem, each.plan)
        say(shown if len(files) == 1 else f"{each.title}\n\n{shown}\n")
    if len(files) > 1:
        rows = [(Path(file).stem, *_figures(each)) for file, each in zip(files, designs, strict=True)]
        say(table(HEADINGS, rows))
    note("Predicted from data sheets and benchmarks of others, not measured: see docs/planning.md.")


def _figures(made: Design | ClusterError) -> tuple[str, ...]:
    if isinstance(made, ClusterError):
        return ("", str(made), "", "", "")
    times = made.plan.prediction
    return (
        f"{len(made.plan.stages)} of {len(made.problem.nodes)}",
        split_text(made.plan.counts),
        f"{times.decode_tokens_per_s:.1f} tok/s",
        f"{times.throughput_tokens_per_s:.1f} tok/s",
        milliseconds(times.ttft_s),
    )
