"""What `--model` can name at the hub. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mdi.errors import ModelError
from mdi.hub.names import close_names, known_models

MAX_TYPED_CHARS = 400  # a repository has at most 96, and the longest file names of published models some 120
DEFAULT_REVISION = "main"
FORMS = "a name of `mdi models list`, ORG/NAME, ORG/NAME@REVISION, ORG/NAME:FILE.gguf, or a path"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_TYPED = re.compile(rf"(?P<where>{_PART}(?:/{_PART})?)(?:@(?P<revision>[^@:\s]+))?(?::(?P<file>[^:@]+))?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")


@dataclass(frozen=True, slots=True)
class Reference:
    """A model at the hub. `file`: a GGUF file of the repository, or a part of its name such as Q4_K_M; `name`: what was typed for it."""

    repository: str
    revision: str = DEFAULT_REVISION
    file: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if ".." in self.revision or not _REVISION.fullmatch(self.revision):
            raise ModelError(
                f"{self.revision!r:.80} is no revision", hint="a branch, a tag or a commit follows the @: ORG/NAME@REVISION"
            )
        if self.file is not None and not is_plain_path(self.file):
            raise ModelError(f"{self.file!r:.80} is no file of a repository", hint="write it as ORG/NAME:FILE.gguf")

    def __str__(self) -> str:
        """What to type to get it again."""
        revision = "" if self.revision == DEFAULT_REVISION else f"@{self.revision}"
        file = "" if self.file is None else f":{self.file}"
        return f"{self.name or self.repository}{revision}{file}"


def is_plain_path(path: str) -> bool:
    """Whether `path` stays inside the directory that it is joined to, on every system."""
    return all(part not in ("", ".", "..") and not set(part) & set("\\:\0") for part in path.split("/"))


def looks_like_path(typed: str) -> bool:
    """Whether `typed` can only mean a file or a directory here."""
    return typed.startswith(("~", ".", "/")) or "\\" in typed or (typed.endswith(".gguf") and ":" not in typed)


def parse(typed: str) -> Reference:
    """`NAME`, `ORG/NAME`, either with `@REVISION`, and then with `:FILE`.

    Raises ModelError with what to type instead: close names for one that is unknown.
    """
    match = _TYPED.fullmatch(typed) if len(typed) <= MAX_TYPED_CHARS else None
    if match is None:
        raise ModelError(f"{typed!r:.80} names no model", hint=f"type {FORMS}")
    where, revision, file = match["where"], match["revision"], match["file"]
    if "/" in where:
        if "--" in where or ".." in where:
            raise ModelError(f"the hub has no repository called {where!r:.80}", hint=f"type {FORMS}")
        return Reference(where, revision or DEFAULT_REVISION, file)
    known = known_models().get(where.lower())
    if known is None:
        raise unknown(where)
    return Reference(known.repository, revision or known.revision, file, known.name)


def unknown(typed: str) -> ModelError:
    """For a name that neither the data file nor this device knows."""
    close = close_names(typed)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return ModelError(f"there is no model {typed!r:.80}, and no file or directory of that name", hint=f"{meant}Type {FORMS}")
