"""From what was typed to the pipeline's options."""

from __future__ import annotations

from collections.abc import Sequence

from mdi.cli.options import KvTypeName, ObjectiveName, QuantName, parse_memory, parse_split, parse_wait, parse_wishes
from mdi.model.kv import KvType
from mdi.model.quantise import Quant
from mdi.pipeline.api import StarterOptions
from mdi.plan.plan import Objective


def starter_options(
    *,
    model: str,
    quant: QuantName,
    block: int | None,
    kv_type: KvTypeName,
    ctx: int | None,
    objective: ObjectiveName,
    min_nodes: int,
    busy_share: float,
    split: str | None,
    pin: Sequence[str] | None,
    exclude: Sequence[str] | None,
    no_battery: bool,
    peer: Sequence[str] | None,
    discovery: bool,
    wait: float | None,
    threads: int | None,
    device: str | None,
    max_memory: str | None,
    refresh: bool,
) -> StarterOptions:
    """The options of `mdi run` and `mdi plan`, with the pipeline's defaults for what was left out. Raises UserError."""
    return StarterOptions(
        model=model,
        quant=Quant(quant),
        block=block,
        kv_type=parse_kv_type(kv_type),
        ctx=ctx,
        objective=Objective(objective),
        min_nodes=min_nodes,
        mixed_share=busy_share,
        split=parse_split(split),
        wishes=parse_wishes(pin, exclude, no_battery=no_battery),
        peers=tuple(peer or ()),
        discovery=discovery,
        wait_s=parse_wait(wait),
        threads=threads,
        device=device,
        max_memory_bytes=parse_memory(max_memory),
        refresh_profiles=refresh,
    )


def parse_kv_type(name: KvTypeName) -> KvType | None:
    """None leaves it to the pipeline."""
    return None if name == "auto" else KvType(name)
