"""From what was typed for `--model` to a model on this device: downloaded first, if it is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from mdi.cli.progress import quiet, shown
from mdi.cli.terminal import note

if TYPE_CHECKING:
    from mdi.hub.pull import DownloadProgress, OnDownload
    from mdi.hub.reference import Reference
    from mdi.pipeline.api import Progress


def here(model: str, *, offline: bool, silent: bool, weights: bool = True) -> str:
    """`model` as `mdi.model.source.resolve` takes it: the same for what is built in or a path, else where the download lies.

    Raises ModelError, UserError and HubError as `mdi.hub.pull.obtain` does.
    """
    reference = remote(model)
    if reference is None:
        return model
    from mdi.hub.cache import HubCache
    from mdi.hub.pull import obtain

    with downloading(str(reference), silent=silent) as on_download:
        return str(obtain(reference, HubCache.default(), on_download, offline=offline or never_online(), weights=weights))


@contextmanager
def looked_at(model: str, *, offline: bool) -> Iterator[str]:
    """As `here`, to look at: of a model that is not on this device only the headers come, for as long as the context is open."""
    reference = remote(model)
    if reference is None:
        yield model
        return
    from mdi.hub.cache import HubCache
    from mdi.hub.pull import not_here

    found = HubCache.default().find(reference)
    if found is not None:
        yield str(found)
        return
    if offline or never_online():
        raise not_here(reference)
    from mdi.hub.client import Hub
    from mdi.hub.peek import peeked

    with Hub.opened() as hub, peeked(reference, hub, note) as directory:
        yield str(directory)


def remote(model: str) -> Reference | None:
    """What `model` names at the hub; None for the built-in one and for paths. What lies here by that name comes first."""
    from mdi.hub.reference import looks_like_path, parse
    from mdi.model.source import BUILT_IN, is_here

    if model in BUILT_IN or looks_like_path(model) or is_here(model):
        return None
    return parse(model)


def never_online() -> bool:
    """Whether the environment forbids it: HF_HUB_OFFLINE, as for every program that uses the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def downloading(model: str, *, silent: bool) -> Iterator[OnDownload]:
    """Shows a download while the context is open, unless `silent`; says after Ctrl-C that nothing is lost."""
    seen: list[DownloadProgress] = []
    try:
        with nullcontext(quiet) if silent else shown() as on_progress:

            def show(progress: DownloadProgress) -> None:
                first = progress.n_bytes > 0 and not (seen and seen[-1].n_bytes)
                seen[:] = [progress]
                on_progress(_bar(model, progress))
                if not silent and not sys.stderr.isatty() and (first or progress.waiting):
                    note(_label(model, progress))  # what bars show to a person, a log says in lines

            yield show
    except KeyboardInterrupt:
        if seen and not silent:
            note("stopped; what has come is kept, and the next start goes on from there")
        raise


def _bar(model: str, progress: DownloadProgress) -> Progress:
    from mdi.pipeline.api import Progress

    total = max(progress.n_bytes, 1)
    complete = progress.n_bytes > 0 and progress.files_done == progress.files
    return Progress("download", _label(model, progress), total if complete else min(progress.bytes_done, total - 1), total)


def _label(model: str, progress: DownloadProgress) -> str:
    from mdi.plan.text import binary_bytes, counted

    size = binary_bytes(progress.n_bytes)
    if progress.waiting is not None:
        return f"{model}: {progress.waiting}"
    if progress.files_done == progress.files:
        return f"{model} is here: {counted(progress.files, 'file')}, {size}"
    return f"downloading {model}: {progress.files_done} of {counted(progress.files, 'file')}, {binary_bytes(progress.bytes_done)} of {size}"
