"""`mdi links`: how fast the devices reach each other."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING

from mdi.cli import options as given
from mdi.cli.loop import run_async
from mdi.cli.progress import quiet, shown
from mdi.cli.terminal import note, say

if TYPE_CHECKING:
    from mdi.pipeline.matrix import Matrix


def links(
    peer: given.Peer = None,
    no_discovery: given.NoDiscovery = False,
    wait: given.Wait = None,
    refresh: given.Refresh = False,
    as_json: given.Json = False,
) -> None:
    """Measure the links between all devices: round trips, and throughput for frames of both sizes."""
    from mdi.cli.render_links import links_text
    from mdi.pipeline.api import DEFAULT_WAIT_S

    wait_s = DEFAULT_WAIT_S if wait is None else wait
    matrix, problems = run_async(_survey(tuple(peer or ()), not no_discovery, wait_s, refresh, as_json))
    for problem in problems:
        note(problem)
    say(json.dumps(matrix.to_json()) if as_json else links_text(matrix))


async def _survey(
    peers: tuple[str, ...], discovery: bool, wait_s: float, refresh: bool, as_json: bool
) -> tuple[Matrix, list[str]]:
    from mdi.cluster.home import Home
    from mdi.pipeline.matrix import survey_links

    with nullcontext(quiet) if as_json else shown() as on_progress:
        return await survey_links(
            Home.open(), peers, discovery=discovery, wait_s=wait_s, refresh=refresh, on_progress=on_progress
        )
