"""The options that several commands share, and the texts that mean numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mdi.errors import UserError

MAX_WAIT_S = 3600.0  # a device that is being switched on takes minutes; beyond an hour it is a typing error

if TYPE_CHECKING:
    from mdi.plan.wishes import Pin, Wishes

_PIN = re.compile(r"(.+)=([0-9]{1,6})(?:-([0-9]{1,6}))?", re.ASCII)

QuantName = Literal["auto", "none", "int8", "int4", "int4-plain"]
KvTypeName = Literal["auto", "fp32", "int8"]
ObjectiveName = Literal["latency", "throughput", "mixed"]


def complete_model(typed: str) -> list[str]:
    """For the shell: names that begin so."""
    from mdi.hub.names import known_models

    return [name for name in ("demo", *known_models()) if name.startswith(typed)]


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help="A name of `mdi models list`, ORG/NAME[@REVISION][:FILE.gguf] of the hub, a checkpoint's directory, or a GGUF file.",
        autocompletion=complete_model,
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Download nothing: use models that are here.")]
Quant = Annotated[
    QuantName, typer.Option(help="How weights are kept: auto is int4, but quantised files as they are; none is fp32.")
]
Block = Annotated[
    int | None,
    typer.Option(metavar="N", help="Weights that share a scale.  [default: 256 for models of 1 B and more, else 128]"),
]
KvType = Annotated[
    KvTypeName,
    typer.Option(help="How CPUs keep keys and values: auto is int8, but fp32 with --quant none. GPUs keep 16 bits."),
]
Ctx = Annotated[
    int | None, typer.Option(metavar="N", help="Longest conversation in tokens.  [default: at most 4096 of the model's own]")
]
Objective = Annotated[
    ObjectiveName, typer.Option(help="Plan for one fast conversation, for the most tokens of several, or for some of both.")
]
BusyShare = Annotated[
    float, typer.Option(metavar="X", help="For --objective mixed: the share of tokens that come while all nodes are busy.")
]
Split = Annotated[str | None, typer.Option(metavar="N,N,...", help="Blocks of each node by hand, the starter's first: 4,6,6.")]
MinNodes = Annotated[int, typer.Option(metavar="N", help="Use at least this many nodes, even if fewer are faster.")]
PinBlocks = Annotated[
    list[str] | None, typer.Option(metavar="NODE=0-3", help="These blocks lie on this node; may be repeated.")
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="NODE", help="Give this node no blocks; may be repeated.")]
NoBattery = Annotated[bool, typer.Option("--no-battery", help="Give no blocks to nodes that run on their battery.")]
Peer = Annotated[list[str] | None, typer.Option(metavar="HOST:PORT", help="A node to dial directly; may be repeated.")]
NoDiscovery = Annotated[bool, typer.Option("--no-discovery", help="Do not look for nodes by mDNS: only --peer counts.")]
Wait = Annotated[float | None, typer.Option(metavar="SECONDS", help="How long to listen for nodes.  [default: 1.5]")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="CPU threads to compute with.  [default: all cores]")]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="What to compute on: auto (a GPU if torch sees one, else cpu), cpu, cuda, cuda:N, mps or torch-cpu.  [default: auto]",
    ),
]
MaxMemory = Annotated[str | None, typer.Option(metavar="SIZE", help="Offer at most this much memory, such as 2GiB or 800MB.")]
Refresh = Annotated[bool, typer.Option("--refresh", help="Measure devices and links again instead of using what is known.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def parse_split(text: str | None) -> tuple[int, ...] | None:
    """`4,6,6` as numbers. Raises UserError."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= 6 for part in parts):
        raise UserError(f"--split {text[:40]!r} is not a list of block counts", hint="write it like --split 4,6,6")
    return tuple(int(part) for part in parts)


def parse_wishes(pins: Sequence[str] | None, excluded: Sequence[str] | None, *, no_battery: bool) -> Wishes:
    """`attic=0-3` as blocks 0 to 3 on the node `attic`, `attic=5` as one block. Raises UserError."""
    from mdi.plan.wishes import Wishes

    return Wishes(tuple(_pin(text) for text in pins or ()), tuple(excluded or ()), no_battery)


def _pin(text: str) -> Pin:
    from mdi.plan.plan import BlockRange
    from mdi.plan.wishes import Pin

    match = _PIN.fullmatch(text)
    first, last = (int(match[2]), int(match[3] or match[2])) if match else (1, 0)
    if match is None or last < first:
        raise UserError(f"--pin {text[:40]!r} is not a node and its blocks", hint="write it like --pin attic=0-3")
    return Pin(match[1], BlockRange(first, last + 1))


def parse_wait(seconds: float | None) -> float:
    """How long to listen; None the usual time. Raises UserError."""
    from mdi.pipeline.api import DEFAULT_WAIT_S

    if seconds is None:
        return DEFAULT_WAIT_S
    if not 0 <= seconds <= MAX_WAIT_S:
        raise UserError(f"--wait {seconds:g} is outside 0 to {MAX_WAIT_S:.0f} seconds", hint="a few seconds find every node")
    return seconds


def parse_memory(text: str | None) -> int | None:
    """`2GiB` as bytes. Raises UserError."""
    from mdi.profile.memory import parse_bytes

    return None if text is None else parse_bytes(text)
