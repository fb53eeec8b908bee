"""`mdi run`: one answer, or a conversation."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from mdi.cli import options as given
from mdi.cli import wishes as wished
from mdi.cli.fetching import here
from mdi.cli.loop import run_async
from mdi.cli.progress import quiet, shown
from mdi.cli.terminal import note, say
from mdi.errors import UserError

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
    top_k: wished.TopK = 0,
    top_p: wished.TopP = 1.0,
    min_p: wished.MinP = MIN_P,
    seed: wished.Seed = None,
    repetition_penalty: wished.RepetitionPenalty = 1.0,
    frequency_penalty: wished.FrequencyPenalty = 0.0,
    presence_penalty: wished.PresencePenalty = 0.0,
    logit_bias: wished.LogitBias = None,
    logprobs: wished.Logprobs = None,
    stop: wished.Stop = None,
    json_schema: wished.JsonSchema = None,
    regex: wished.Regex = None,
    no_speculation: wished.NoSpeculation = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end of the turn: for benchmarks.")] = False,
    ctx: given.Ctx = None,
    quant: given.Quant = "auto",
    block: given.Block = None,
    kv_type: given.KvType = "auto",
    objective: given.Objective = "latency",
    busy_share: given.BusyShare = 0.5,
    split: given.Split = None,
    pin: given.PinBlocks = None,
    exclude: given.Exclude = None,
    no_battery: given.NoBattery = False,
    min_nodes: given.MinNodes = 1,
    peer: given.Peer = None,
    no_discovery: given.NoDiscovery = False,
    wait: given.Wait = None,
    threads: given.Threads = None,
    device: given.Device = None,
    max_memory: given.MaxMemory = None,
    refresh: given.Refresh = False,
    offline: given.Offline = False,
    as_json: given.Json = False,
) -> None:
    """Talk to a model that runs across your devices.

    Without --prompt this is a conversation: at a terminal with /help, over a pipe one message per line.
    """
    from mdi.cli.conversation import Wishes
    from mdi.cli.starting import starter_options
    from mdi.engine.sampling import SamplingParams

    starting = starter_options(
        model=model, quant=quant, block=block, kv_type=kv_type, ctx=ctx, objective=objective, busy_share=busy_share,
        min_nodes=min_nodes, split=split, pin=pin, exclude=exclude, no_battery=no_battery, peer=peer,
        discovery=not no_discovery, wait=wait, threads=threads, device=device, max_memory=max_memory, refresh=refresh,
    )  # fmt: skip
    if temperature is None:
        temperature = 0.0 if model == BUILT_IN_MODEL else TEMPERATURE
    if logprobs is not None and not as_json:
        raise UserError("--logprobs has no place in plain text", hint="add --json")
    if raw and system is not None:
        raise UserError("--system has no place in --raw, which continues the text as it is", hint="put it into the prompt")
    biases = wished.parse_logit_bias(logit_bias)
    penalties = (repetition_penalty, frequency_penalty, presence_penalty)
    params = SamplingParams(temperature, top_k, top_p, min_p, seed or 0, *penalties, biases, logprobs)
    constraint = wished.parse_constraint(json_schema, regex)
    wishes = Wishes(params, seed, max_tokens, tuple(stop or ()), ignore_eos, raw, constraint, not no_speculation)
    starting = replace(starting, model=here(model, offline=offline, silent=as_json))
    raise typer.Exit(run_async(_run(starting, wishes, system, prompt, as_json=as_json)))


async def _run(starting: StarterOptions, wishes: Wishes, system: str | None, prompt: str | None, *, as_json: bool) -> int:
    from mdi.cli.conversation import Conversation, check_question
    from mdi.cli.inputs import open_inputs, read_stdin
    from mdi.cli.render import answer_json
    from mdi.cli.repl import stream, talk
    from mdi.cluster.home import Home
    from mdi.pipeline.api import Answer
    from mdi.pipeline.starter import open_starter

    home = Home.open()
    if prompt == STDIN or (as_json and prompt is None):
        prompt = await read_stdin()
    if prompt is not None:
        check_question(prompt, raw=wishes.raw)  # now, and not when the model is up
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
        told = answer_json(answer, conversation.params, starter.model, starter.plan, starter.recoveries)
        say(json.dumps(told))
        return 0
