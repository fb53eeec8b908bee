"""`mdi models list, pull, rm, search`: the models on this device, and those that could be."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdi.cli import options as given
from mdi.cli.fetching import downloading, never_online
from mdi.cli.terminal import note, on_terminal, say
from mdi.errors import UserError

if TYPE_CHECKING:
    from mdi.hub.cache import HubCache
    from mdi.hub.names import KnownModel
    from mdi.hub.reference import Reference
    from mdi.hub.stored import StoredModel

Named = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name of `mdi models list`, or ORG/NAME[@REVISION][:FILE.gguf].",
        autocompletion=given.complete_model,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
SHOWN = 20  # search results: a screen
ASKED = 100  # of the hub: most of what it finds cannot be run, such as adapters and other architectures


def list_models(
    here: Annotated[bool, typer.Option("--here", help="Only models that are on this device.")] = False,
    as_json: given.Json = False,
) -> None:
    """Show the names that --model takes, what each would download, and which models are here and where."""
    from mdi.hub.cache import HubCache
    from mdi.hub.names import known_models
    from mdi.hub.stored import stored_models

    cache = HubCache.default()
    stored = {model.repository: model for model in stored_models(cache)}
    known = [model for model in known_models().values() if not here or model.repository in stored]
    named = {model.repository for model in known_models().values()}
    others = [model for repository, model in stored.items() if repository not in named]
    if as_json:
        rows = [_known_json(model, stored.get(model.repository)) for model in known]
        rows += [_stored_json(None, model) for model in others]
        say(json.dumps({"directory": str(cache.root), "free_bytes": cache.free_bytes(), "models": rows}))
    else:
        say(_list_text(cache, known, stored, others))


def pull(
    model: Named,
    verify: Annotated[bool, typer.Option("--verify", help="Also check the hashes of files that are here already.")] = False,
    as_json: given.Json = False,
) -> None:
    """Download a model, go on with a download that was cut, or bring one up to date."""
    from mdi.hub import pull as pulling
    from mdi.hub.cache import HubCache
    from mdi.hub.client import Hub
    from mdi.hub.reference import parse

    reference, cache = parse(model), HubCache.default()
    if never_online():
        raise UserError(
            "HF_HUB_OFFLINE forbids any download", hint="unset it for this one: HF_HUB_OFFLINE=0 mdi models pull ..."
        )
    with downloading(str(reference), silent=as_json) as on_download, Hub.opened() as hub:
        path = pulling.pull(reference, hub, cache, on_download, verify=verify)
    say(json.dumps({"model": str(reference), "path": str(path)}) if as_json else str(path))


def remove(model: Named, yes: Yes = False, as_json: given.Json = False) -> None:
    """Delete a model's files from this device, unfinished downloads too. Other programs share them."""
    from mdi.hub import stored
    from mdi.hub.cache import HubCache
    from mdi.hub.reference import parse
    from mdi.plan.text import binary_bytes

    reference, cache = parse(model), HubCache.default()
    folder = cache.folder(reference.repository)
    if folder.is_dir() and not yes:
        if as_json or not on_terminal():
            raise UserError(f"{folder} is shared with other programs of this user", hint="add --yes to delete from it")
        if not typer.confirm(f"Delete {reference} from {folder}, which other programs share?", err=True):
            raise typer.Exit(1)
    freed = stored.remove(cache, reference)
    say(json.dumps({"model": str(reference), "freed_bytes": freed}) if as_json else f"{binary_bytes(freed)} freed")


def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A part of a model's name.")],
    offline: given.Offline = False,
    as_json: given.Json = False,
) -> None:
    """Look for models that can be run, among the names and at the hub."""
    from mdi.hub.names import known_models

    names = [model for model in known_models().values() if text.lower() in f"{model.name} {model.repository}".lower()]
    rows: list[dict[str, Any]] = [_known_json(model, None) for model in names]
    if not (offline or never_online()):
        taken = {model.repository for model in names}
        rows += [row for row in _found(text) if row["repository"] not in taken][:SHOWN]
    if as_json:
        say(json.dumps({"models": rows}))
    elif rows:
        say(_search_text(rows))
    else:
        note(f"nothing that can be run is called like {text!r}", dim=False)


def _found(text: str) -> list[dict[str, Any]]:
    from mdi.hub.client import Hub
    from mdi.hub.pace import FIRST_TRIES, Pace
    from mdi.hub.search import runnable

    with Hub.opened() as hub:
        pace = Pace(time.sleep, note, FIRST_TRIES)
        found = pace.persist(lambda: hub.search(text, ASKED))
    return [row.to_json() for row in runnable(found)]


def _known_json(model: KnownModel, stored: StoredModel | None) -> dict[str, Any]:
    return {
        "name": model.name,
        "repository": model.repository,
        "revision": model.revision,
        "family": model.family,
        "licence": model.licence,
        "gated": model.gated,
        "chat": model.chat,
        "parameters": model.parameters,
        "approximate_download_bytes": model.download_bytes,
        **_place(stored),
    }


def _stored_json(name: str | None, stored: StoredModel) -> dict[str, Any]:
    return {"name": name, "repository": stored.repository, **_place(stored)}


def _place(stored: StoredModel | None) -> dict[str, Any]:
    """Where a model lies, if it does."""
    if stored is None:
        return {"directory": None, "stored_bytes": 0, "unfinished_bytes": 0, "whole": []}
    return {
        "directory": str(stored.folder),
        "stored_bytes": stored.n_bytes,
        "unfinished_bytes": stored.unfinished_bytes,
        "whole": [{"model": str(reference), "path": str(path)} for reference, path in stored.paths],
    }


def _list_text(cache: HubCache, known: list[KnownModel], stored: dict[str, StoredModel], others: list[StoredModel]) -> str:
    from mdi.plan.explain import table
    from mdi.plan.text import binary_bytes

    parts = []
    if known:
        heads = ("name", "parameters", "download, about", "here", "licence")
        parts.append(table(heads, [_known_row(model, stored.get(model.repository)) for model in known]))
    if others:
        rows = [(_called(model), _state(model)) for model in others]
        parts.append(table(("also here", "size"), rows))
    free = binary_bytes(cache.free_bytes())
    parts.append(f"`demo` is built in. Models lie in {cache.root} ({free} free), which other programs share; HF_HOME moves it.")
    return "\n\n".join(parts)


def _known_row(model: KnownModel, stored: StoredModel | None) -> tuple[str, str, str, str, str]:
    from mdi.cli.models import counted_values
    from mdi.plan.text import binary_bytes

    licence = f"{model.licence}, gated" if model.gated else model.licence
    here = "" if stored is None else _state(stored)
    return model.name, counted_values(model.parameters), binary_bytes(model.download_bytes), here, licence


def _state(model: StoredModel) -> str:
    """How much of it is here, and whether it can be run."""
    from mdi.plan.text import binary_bytes

    size = binary_bytes(model.n_bytes + model.unfinished_bytes)
    return size if model.paths else f"{size}, not whole"


def _called(model: StoredModel) -> str:
    """What to type for it."""
    references: list[Reference] = [reference for reference, _ in model.paths]
    return ", ".join(map(str, references)) or model.repository


def _search_text(rows: list[dict[str, Any]]) -> str:
    from mdi.cli.models import counted_values
    from mdi.plan.explain import table

    lines = []
    for row in rows:
        size = "" if row["parameters"] is None else counted_values(row["parameters"])
        lines.append((row["name"] or row["repository"], size, row["family"], "gated" if row["gated"] else ""))
    return table(("type this", "parameters", "family", ""), lines)
