"""`mdi node profile`: what this device is, and what it can do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mdi.cli import options as given
from mdi.cli.loop import run_async
from mdi.cli.terminal import note, say

if TYPE_CHECKING:
    from mdi.profile.whole import Subject


def profile(
    model: given.Model = "demo",
    as_json: given.Json = False,
    quant: given.Quant = "auto",
    block: given.Block = None,
    ctx: given.Ctx = None,
    threads: given.Threads = None,
    device: given.Device = None,
    max_memory: given.MaxMemory = None,
    refresh: given.Refresh = False,
) -> None:
    """Measure this device, with its own kernels and the blocks of a model; what is known is not measured again."""
    from dataclasses import replace

    from mdi.cli.render_profile import profile_text
    from mdi.cluster.home import Home
    from mdi.engine.backend import AUTO, choose_backend
    from mdi.pipeline.own import own_info
    from mdi.profile.device import DeviceInfo
    from mdi.profile.whole import measure_whole

    home = Home.open()
    own = run_async(own_info(home))  # as its daemon computes, so that both find the same in the cache
    subject = _subject(model, quant, block, ctx)
    if not as_json:
        note(f"measuring this device with the blocks of {subject.name}")
    found = measure_whole(
        home.profiles_path,
        subject,
        threads or (own.threads if own else DeviceInfo.of_this_device().usable_cores),
        choose_backend(device or (own.device if own else AUTO)),
        max_memory=given.parse_memory(max_memory),
        refresh=refresh,
    )
    if own is not None and max_memory is None:
        found = replace(found, memory=replace(found.memory, offered_bytes=own.memory_offered_bytes))
    say(json.dumps(found.to_json()) if as_json else profile_text(found))


def _subject(model: str, quant: given.QuantName, block: int | None, ctx: int | None) -> Subject:
    """As `mdi run` would measure it, so that both find it in the cache."""
    from mdi.model.quantise import Quant
    from mdi.model.source import Model, resolve
    from mdi.pipeline.api import StarterOptions
    from mdi.pipeline.problem import Workload
    from mdi.profile.whole import Subject

    opened = Model(resolve(model))
    workload = Workload.of(opened, StarterOptions(model=model, quant=Quant(quant), block=block, ctx=ctx))
    return Subject(opened.source.name, workload.config, workload.fmt, workload.ctx, workload.chunk_tokens)
