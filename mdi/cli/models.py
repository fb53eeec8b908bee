"""`mdi models`: what models are, before they run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mdi.cli import options as given
from mdi.cli.fetching import looked_at
from mdi.cli.terminal import note, say

if TYPE_CHECKING:
    from mdi.pipeline.inspection import Fit, Inspection


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH",
            help="As --model of `mdi run`; of a model that is not here, the hub is asked for its headers only.",
            autocompletion=given.complete_model,
        ),
    ],
    as_json: given.Json = False,
    quant: given.Quant = "auto",
    block: given.Block = None,
    kv_type: given.KvType = "auto",
    ctx: given.Ctx = None,
    offline: given.Offline = False,
) -> None:
    """Show a model's family, shape and formats, what it takes in memory, and which devices would hold it."""
    from mdi.cli.starting import parse_kv_type
    from mdi.model.quantise import Quant
    from mdi.model.source import resolve
    from mdi.pipeline import inspection, problem

    with looked_at(model, offline=offline) as path:
        found = inspection.inspect(resolve(path), Quant(quant), block, ctx, parse_kv_type(kv_type))
    for notice in problem.ctx_notices(ctx, found.config):
        note(notice)
    say(json.dumps(found.to_json()) if as_json else inspection_text(found))


def inspection_text(found: Inspection) -> str:
    """A paragraph about the shape, a table of the files' formats, one of the devices."""
    from mdi.plan.explain import table
    from mdi.plan.text import binary_bytes, counted

    config = found.config
    window = "" if config.sliding_window is None else f", a window of {config.sliding_window} tokens"
    dense = "" if len(config.sparse_blocks) == config.n_blocks else f"feed-forward {config.d_ffn}, "
    shape = [
        f"{found.name}: {config.architecture}, {counted_values(found.parameters)} parameters, {found.container}",
        f"{counted(config.n_blocks, 'block')} of width {config.d_model}, {dense}"
        f"{counted(config.n_heads, 'head')} ({config.n_kv_heads} of keys and values) of {config.head_dim}",
        *mixture(found),
        f"{config.vocab_size} tokens, context {config.max_positions}{window}",
    ]
    formats = [(row.kind, str(row.tensors), binary_bytes(row.n_bytes), f"{row.bits_per_value:.2f}") for row in found.formats]
    needs = [
        f"In memory as --quant {found.quant}: {binary_bytes(found.total_bytes)}, a block {binary_bytes(found.block_bytes)}, "
        f"the head {binary_bytes(found.head_bytes)}.",
        f"KV as --kv-type {found.kv_type}: {binary_bytes(found.kv_bytes_per_token)} per token, "
        f"{binary_bytes(found.ctx * found.kv_bytes_per_token)} for {found.ctx} tokens.",
    ]
    devices = table(("device", "holds"), [(binary_bytes(fit.memory_bytes), holds(fit, config.n_blocks)) for fit in found.fits])
    stored = table(("stored as", "tensors", "bytes", "bits each"), formats)
    return "\n\n".join(
        ["\n".join(shape), stored, "\n".join([*needs, *(f"Note: {notice}." for notice in found.notices)]), devices]
    )


def mixture(found: Inspection) -> list[str]:
    """A line about the experts; none for a dense model."""
    from mdi.plan.text import counted

    experts, sparse = found.config.experts, len(found.config.sparse_blocks)
    if experts is None:
        return []
    where = "every block" if sparse == found.config.n_blocks else counted(sparse, "block")
    chosen = f"{experts.n_chosen} for each token, which uses {counted_values(found.active_parameters)} parameters"
    return [f"{experts.n_experts} experts of width {experts.d_ffn} in {where}, {chosen}"]


def counted_values(n: int) -> str:
    """1.24 B, 27.5 M."""
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.1f} M"


def holds(fit: Fit, n_blocks: int) -> str:
    """How much of the model lies on such a device."""
    if fit.whole:
        return "the whole model"
    if fit.devices is None:
        return "too little for any part" if not fit.blocks else f"{fit.blocks} of {n_blocks} blocks, but not the head"
    return f"{fit.blocks} of {n_blocks} blocks; {fit.devices} such devices hold all"
