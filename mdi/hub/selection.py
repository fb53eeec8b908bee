"""Which files of a repository a model needs: one copy of its weights, and of the rest only what is read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mdi.errors import ModelError
from mdi.hub.files import Listing, RemoteFile
from mdi.hub.reference import Reference
from mdi.model.checkpoint import INDEX, SINGLE
from mdi.model.fields import Fields
from mdi.model.gguf.files import SUFFIX, model_name

CONFIG = "config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # the first that is there is read
SMALL = (
    CONFIG,
    "generation_config.json",
    "quantize_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
MOST_LISTED = 12  # files in a refusal
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def shard_names(index: Fields) -> list[str]:
    """Files that an index of safetensors names. Raises ModelError for one that would lie elsewhere."""
    weight_map = index.object("weight_map")
    names = sorted({weight_map.text(tensor) for tensor in weight_map.values}) if weight_map else []
    for name in names:
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise ModelError(f"{index.origin} names {name!r:.80} as a file of weights, which is no plain safetensors file name")
    if not names:
        raise ModelError(f"{index.origin} names no files of weights")
    return names


def is_checkpoint(listing: Listing) -> bool:
    """Whether it has weights as safetensors; else it is a repository of GGUF files, or no model."""
    return CONFIG in listing.files and (SINGLE in listing.files or INDEX in listing.files)


def small_files(listing: Listing) -> list[RemoteFile]:
    """All but the weights of a safetensors checkpoint. Raises ModelError for a repository that is none."""
    found = listing.files
    if CONFIG not in found:
        raise _no_checkpoint(listing)
    tokenizer = next((name for name in TOKENIZERS if name in found), None)
    if tokenizer is None:
        raise ModelError(
            f"{listing.repository} holds no tokenizer ({' or '.join(TOKENIZERS)})",
            hint="choose the repository of the model that it was made from, or another revision",
        )
    return [found[name] for name in (*SMALL, tokenizer) if name in found]


def weight_files(listing: Listing, index: Fields | None) -> list[RemoteFile]:
    """The safetensors files; `index`: of several, where the repository has one. Raises ModelError when there are none."""
    found = listing.files
    if SINGLE in found:
        return [found[SINGLE]]
    if index is not None:
        names = shard_names(index)
        missing = [name for name in names if name not in found]
        if missing:
            raise ModelError(
                f"{listing.repository} lacks {missing[0]}, which its {INDEX} names", hint="choose another revision"
            )
        return [found[INDEX], *(found[name] for name in names)]
    raise _no_checkpoint(listing)


def gguf_files(listing: Listing, reference: Reference) -> list[RemoteFile]:
    """The GGUF file that is meant, with all parts of a split one. Raises ModelError naming what there is to choose from."""
    models = gguf_models(listing.files)
    wanted = reference.file
    if wanted is None:
        chosen = list(models)
    elif wanted in listing.files and wanted.endswith(SUFFIX):
        chosen = [name for name, paths in models.items() if wanted in paths]
    else:  # a part of the name: Q4_K_M
        chosen = [name for name in models if wanted.lower() in name.lower()]
    if len(chosen) == 1:
        return [listing.files[path] for path in models[chosen[0]]]
    raise _choose(listing, models, chosen, wanted)


def gguf_models(paths: Iterable[str]) -> dict[str, list[str]]:
    """GGUF files by the model that they are (parts of), each in order."""
    models: dict[str, list[str]] = {}
    for path in sorted(path for path in paths if path.endswith(SUFFIX)):
        directory, _, file = path.rpartition("/")
        models.setdefault(f"{directory}/{model_name(Path(file))}".removeprefix("/"), []).append(path)
    return models


def _choose(listing: Listing, models: Mapping[str, Sequence[str]], chosen: Sequence[str], wanted: str | None) -> ModelError:
    repository = listing.repository
    if not models and wanted is None:
        return _no_checkpoint(listing)
    if not models:
        return ModelError(f"{repository} holds no GGUF file", hint=f"without a file its safetensors are taken: {repository}")
    shown = chosen or list(models)
    files = [models[name][0] for name in shown[:MOST_LISTED]]
    more = f" and {len(shown) - MOST_LISTED} more" if len(shown) > MOST_LISTED else ""
    if wanted is None or chosen:
        said = f"{repository} holds {len(shown)} GGUF models" + (f" called like {wanted!r}" if wanted else "")
    else:
        said = f"{repository} holds no file {wanted!r:.80}"
    return ModelError(said, hint=f"type {repository}:FILE with one of: {', '.join(files)}{more}")


def _no_checkpoint(listing: Listing) -> ModelError:
    files = listing.files
    if any(path.endswith(PICKLED) for path in files):
        return ModelError(
            f"{listing.repository} holds only pickled weights, and unpickling would run code from them",
            hint="choose a revision or a repository with .safetensors files",
        )
    return ModelError(
        f"{listing.repository} is no model that can be run: it has no {CONFIG} with .safetensors files, and no GGUF file",
        hint="mdi models search TEXT shows models that can",
    )
