"""The names of models that need no repository typed: one data file, `names.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from mdi.errors import InternalError

GB = 1_000_000_000
MOST_MATCHES = 4  # shown for a name that is unknown: more would be a list to read, not a correction
SIMILARITY = 0.5  # of `difflib`: "lama3-8b" finds llama-3-8b, "gpt-4" finds nothing


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One row of `names.toml`. `download_bytes` is approximate, and so said wherever it is shown."""

    name: str
    repository: str
    revision: str
    family: str
    licence: str
    gated: bool
    download_bytes: int
    parameters: int
    chat: bool

    @classmethod
    def of_row(cls, name: str, row: Mapping[str, Any]) -> KnownModel:
        try:
            return cls(
                name=name,
                repository=str(row["repository"]),
                revision=str(row.get("revision", "main")),
                family=str(row["family"]),
                licence=str(row["licence"]),
                gated=bool(row.get("gated", False)),
                download_bytes=round(row["download_gb"] * GB),
                parameters=int(row["parameters"]),
                chat=bool(row.get("chat", True)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InternalError(f"names.toml: the row of {name!r} cannot be read: {error!r}") from error


@cache
def known_models() -> Mapping[str, KnownModel]:
    """By name, in the file's order."""
    rows = tomllib.loads(files("mdi.hub").joinpath("names.toml").read_text(encoding="utf-8"))
    return MappingProxyType({name: KnownModel.of_row(name, row) for name, row in rows.items()})


def close_names(typed: str) -> list[str]:
    """Names that may have been meant, the likeliest first."""
    names = list(known_models())
    begun = [name for name in names if typed and name.startswith(typed.lower())]
    alike = get_close_matches(typed.lower(), names, MOST_MATCHES, SIMILARITY)
    return list(dict.fromkeys([*begun, *alike]))[:MOST_MATCHES]
