"""`mdi node start`, `mdi node stop` and `mdi nodes`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdi.cli import options as given
from mdi.cli.loop import run_async
from mdi.cli.options import parse_memory, parse_wait
from mdi.cli.terminal import note, say

if TYPE_CHECKING:
    from mdi.node.daemon import NodeReady

STOP_TIMEOUT_S = 15.0  # a node drains its calls for some seconds; a Pi that swaps takes its time


def start(
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="How others see this device.  [default: its host name]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Where to listen.  [default: 52700, or the next free port]")
    ] = None,
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="The address to listen on.  [default: all]")] = None,
    max_memory: given.MaxMemory = None,
    threads: given.Threads = None,
    device: given.Device = None,
    peer: given.Peer = None,
    no_discovery: Annotated[bool, typer.Option("--no-discovery", help="Do not announce this node by mDNS.")] = False,
    join: Annotated[str | None, typer.Option(metavar="KEY", help="The cluster key that the first node printed.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A mdi.toml for what is not given here.", show_default=False)
    ] = None,
) -> None:
    """Serve the cluster from this device until Ctrl-C or `mdi node stop`.

    The first start on the first device makes the cluster's key and prints what to type on the others.
    """
    from mdi.cluster.home import Home
    from mdi.engine.backend import AUTO
    from mdi.node.daemon import NodeOptions, run_node
    from mdi.node.settings import NodeSettings, read_settings

    settings = read_settings(config) if config is not None else NodeSettings()
    options = NodeOptions(
        name=settings.name if name is None else name,
        host=host,
        port=port,
        max_memory_bytes=settings.max_memory_bytes if max_memory is None else parse_memory(max_memory),
        threads=settings.threads if threads is None else threads,
        device=device or AUTO,
        peers=(*settings.peers, *(peer or ())),
        discovery=not no_discovery,
        join=join,
    )
    home = Home.open()
    if config is not None and settings.key_file is not None and home.key_file is None:  # MDI_CLUSTER_KEY_FILE goes first
        home = replace(home, key_file=config.parent / settings.key_file)
    run_async(run_node(options, home, _tell_ready))


def _tell_ready(ready: NodeReady) -> None:
    say(f"node {ready.name} ({ready.node_id}) serves cluster {ready.fingerprint} on port {ready.port}")
    if ready.new_key is not None:
        say(f"\nThis is a new cluster. On each other device type:\n\n    mdi node start --join {ready.new_key}\n")
        say("The key is a secret: whoever has it belongs to the cluster.")


def stop() -> None:
    """End the node that runs on this device."""
    from mdi.cluster.home import Home
    from mdi.node.daemon import stop_node

    note("the node has ended" if stop_node(Home.open(), STOP_TIMEOUT_S) else "no node runs here")


def nodes(
    peer: given.Peer = None,
    no_discovery: given.NoDiscovery = False,
    wait: given.Wait = None,
    as_json: given.Json = False,
) -> None:
    """List the nodes of this cluster: what they offer and what they hold."""
    from mdi.cli.render import nodes_text
    from mdi.cluster.home import Home
    from mdi.pipeline.survey import list_nodes

    found = run_async(list_nodes(Home.open(), tuple(peer or ()), not no_discovery, parse_wait(wait)))
    say(json.dumps(found.to_json()) if as_json else nodes_text(found))
