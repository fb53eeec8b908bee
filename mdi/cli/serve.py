"""`mdi serve`: a model over HTTP, for the programs that people have."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from mdi.cli import options as given
from mdi.cli.fetching import here, remote
from mdi.cli.loop import run_async
from mdi.cli.progress import shown
from mdi.cli.terminal import note, say

if TYPE_CHECKING:
    from mdi.pipeline.api import StarterOptions
    from mdi.serve.server import ServeOptions, Serving

BUILT_IN_MODEL = "demo"
MAX_PARALLEL = 1024  # rows of one step are at most 256; more answers would only wait for each other
PARALLEL = 4  # a household's programs; each more takes KV for one context on every node


def serve(
    model: given.Model = BUILT_IN_MODEL,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; any but loopback needs an API key. 0.0.0.0 is everywhere.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", help="Where to listen; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="MDI_API_KEY",
            metavar="KEY",
            help="Who asks must have it; may be repeated, one for each user.  [default: none on loopback, else one is made and printed]",
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(metavar="N", help="Answers at once; each takes memory for one --ctx.")] = PARALLEL,
    max_queue: Annotated[
        int, typer.Option(metavar="N", help="Answers that may wait; further ones are refused with 429.")
    ] = 256,
    served_name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name for the model in requests; may be repeated.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further host name of this server; may be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Pages of this origin may use the server; may be repeated.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="X", help="Where a request gives none.  [default: 1, as OpenAI's API; 0 for the built-in model]"),
    ] = None,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long answers may go on after Ctrl-C; a second one cuts them.")
    ] = 30.0,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log each request as one JSON object on stderr.")] = False,
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
) -> None:
    """Serve a model that runs across your devices to programs that speak OpenAI's, Anthropic's or Ollama's API."""
    from mdi.cli.starting import starter_options
    from mdi.errors import UserError
    from mdi.serve.server import ServeOptions
    from mdi.serve.settings import Defaults

    starting = starter_options(
        model=model, quant=quant, block=block, kv_type=kv_type, ctx=ctx, objective=objective, busy_share=busy_share,
        min_nodes=min_nodes, split=split, pin=pin, exclude=exclude, no_battery=no_battery, peer=peer,
        discovery=not no_discovery, wait=wait, threads=threads, device=device, max_memory=max_memory, refresh=refresh,
    )  # fmt: skip
    if not 1 <= parallel <= MAX_PARALLEL:
        raise UserError(f"--parallel {parallel} is outside 1 to {MAX_PARALLEL}", hint="each answer takes memory for one --ctx")
    if temperature is not None and not 0 <= temperature <= 100:
        raise UserError(f"--temperature {temperature:g} is outside 0 to 100")
    if temperature is None:
        temperature = 0.0 if model == BUILT_IN_MODEL else 1.0  # of so small a model only the likeliest words are right
    serving = ServeOptions(
        host=host,
        port=port,
        keys=tuple(api_key or ()),
        max_queue=max_queue,
        names=(*(served_name or ()), *([model] if remote(model) is not None else [])),
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        defaults=Defaults(temperature=temperature),
        drain_s=drain,
        log_json=log_json,
    )
    starting = replace(starting, model=here(model, offline=offline, silent=False), n_slots=parallel)
    run_async(_serve(starting, serving))


async def _serve(starting: StarterOptions, serving: ServeOptions) -> None:
    from mdi.cluster.home import Home
    from mdi.pipeline.starter import open_starter
    from mdi.serve.server import run_server

    async with AsyncExitStack() as stack:
        with shown() as on_progress:
            starter = await stack.enter_async_context(open_starter(starting, Home.open(), on_progress))
        for problem in starter.problems:
            note(problem)
        await run_server(starter, serving, _tell_ready)


def _tell_ready(serving: Serving) -> None:
    say(f"serving {serving.models[0]} at {serving.url}/v1 (Ctrl-C ends it)")
    if serving.new_key is not None:
        say(f"\nThe API key of this start is\n\n    {serving.new_key}\n")
        say("Give one with --api-key or MDI_API_KEY to keep it.")
