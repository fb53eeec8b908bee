"""What the hub's search finds, as far as it can be run. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mdi.model.families import FAMILIES
from mdi.model.gguf.architectures import ARCHITECTURES


@dataclass(frozen=True, slots=True)
class Found:
    """One repository. `parameters` None: the hub does not say."""

    repository: str
    family: str
    gated: bool
    parameters: int | None
    downloads: int

    def to_json(self) -> dict[str, Any]:
        return {"name": None, **asdict(self)}


def runnable(entries: Iterable[Mapping[str, Any]]) -> Iterator[Found]:
    """Those of a family that is supported, by the config or the GGUF header that the hub has read; others are left out."""
    for entry in entries:
        family, size = _of_config(entry) or _of_gguf(entry) or (None, None)
        if family is not None:
            downloads = entry.get("downloads")
            count = downloads if type(downloads) is int else 0
            yield Found(entry["id"], family, bool(entry.get("gated")), size, count)


def _of_config(entry: Mapping[str, Any]) -> tuple[str, int | None] | None:
    config, weights = entry.get("config"), entry.get("safetensors")
    names = config.get("architectures") if isinstance(config, Mapping) else None
    if not isinstance(names, list) or not names or names[0] not in FAMILIES or not isinstance(weights, Mapping):
        return None  # without safetensors there would be nothing to load
    return names[0], _whole(weights.get("total"))


def _of_gguf(entry: Mapping[str, Any]) -> tuple[str, int | None] | None:
    header = entry.get("gguf")
    architecture = header.get("architecture") if isinstance(header, Mapping) else None
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        return None
    return f"GGUF, {architecture}", _whole(header.get("total"))  # type: ignore[union-attr]


def _whole(value: object) -> int | None:
    return value if type(value) is int else None
