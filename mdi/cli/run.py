"""`mdi run`: one answer, or a conversation."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from mdi.cli import options as given
from mdi.cli.loop import run_async
from mdi.cli.progress import quiet, shown
from mdi.cli.terminal import note, say

if TYPE_CHECKING:
    from mdi.cli.conversation import Wishes
    from mdi.pipeline.api import StarterOptions

BUILT_IN_MODEL = "demo"
TEMPERATURE = (
    0.7  # lively, and with MIN_P to the point; of a model as small as the built-in one only the likeliest words are right
)
MIN_P = 0.05
STDIN = "-"


def run(
    model: given.Model = BUILT_IN_MODEL,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="Answer this and end; - reads it from stdin. Without it: a conversation."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message in front of the conversation.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the model's chat template.")] = False,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest answer in tokens.  [default: no limit]")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="X", help=f"0 takes the likeliest token.  [default: {TEMPERATURE}, and 0 for the built-in model]"),
    ] = None,
    top_k: Annotated[int, typer.Option(metavar="N", help="Draw from this many likeliest tokens; 0 from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(metavar="X", help="Draw from the likeliest tokens that have this probability together.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(metavar="X", help="Draw from tokens at least this probable relative to the likeliest.")
    ] = MIN_P,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Repeat a draw.  [default: random; --json reports it]")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end of the turn: for benchmarks.")] = False,
    ctx: given.Ctx = None,
    quant: given.Quant = "auto",
    block: given.Block = None,
    objective: given.Objective = "latency",
    split: given.Split = None,
    min_nodes: given.MinNodes = 1,
    peer: given.Peer = None,
    no_discovery: given.NoDiscovery = False,
    wait: given.Wait = None,
    threads: given.Threads = None,
    max_memory: given.MaxMemory = None,
    refresh: given.Refresh = False,
    as_json: given.Json = False,
) -> None:
    """Talk to a model that runs across your devices.

    Without --prompt this is a conversation: at a terminal with /help, over a pipe one message per line.
    """
    from mdi.cli.conversation import Wishes
    from mdi.cli.starting import starter_options
    from mdi.engine.sampling import SamplingParams

    starting = starter_options(
        model=model, quant=quant, block=block, ctx=ctx, objective=objective, min_nodes=min_nodes, split=split, peer=peer,
        discovery=not no_discovery, wait=wait, threads=threads, max_memory=max_memory, refresh=refresh,
    )  # fmt: skip
    if temperature is None:
        temperature = 0.0 if model == BUILT_IN_MODEL else TEMPERATURE
    params = SamplingParams(temperature, top_k, top_p, min_p, seed or 0)
    wishes = Wishes(params, seed, max_tokens, tuple(stop or ()), ignore_eos, raw)
    raise typer.Exit(run_async(_run(starting, wishes, system, prompt, as_json=as_json)))


async def _run(starting: StarterOptions, wishes: Wishes, system: str | None, prompt: str | None, *, as_json: bool) -> int:
    from mdi.cli.conversation import Conversation
    from mdi.cli.inputs import open_inputs, read_stdin
    from mdi.cli.render import answer_json
    from mdi.cli.repl import stream, talk
    from mdi.cluster.home import Home
    from mdi.pipeline.api import Answer
    from mdi.pipeline.starter import open_starter

    home = Home.open()
    if prompt == STDIN or (as_json and prompt is None):
        prompt = await read_stdin()
    async with AsyncExitStack() as stack:
        with nullcontext(quiet) if as_json else shown() as on_progress:
            starter = await stack.enter_async_context(open_starter(starting, home, on_progress))
        for problem in starter.problems:
            note(problem)
        conversation = Conversation(starter, wishes, system)
        if prompt is None:
            return await talk(conversation, open_inputs(home.history_path))
        if not as_json:
            await stream(conversation, prompt)
            return 0
        answer = [event async for event in conversation.ask(prompt) if isinstance(event, Answer)][-1]
        say(json.dumps(answer_json(answer, conversation.params, starter.model.source.name, starter.plan)))
        return 0
