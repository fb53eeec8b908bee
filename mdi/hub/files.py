"""Files of a repository as the hub lists them, and the hashes that prove them. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from mdi.errors import HubError
from mdi.hub.reference import is_plain_path

MAX_FILES = 100_000  # in one repository, as the hub itself advises; a listing beyond it is no model
MAX_FILE_BYTES = 1 << 42  # 4 TiB: the hub's own limit is 500 GB
COMMIT = re.compile(r"[0-9a-f]{40}")


class HashKind(StrEnum):
    """How the hub names a file's content: large files by SHA-256 (Git LFS), others as git blobs."""

    SHA256 = "sha256"
    GIT = "git"


_DIGITS = {HashKind.SHA256: 64, HashKind.GIT: 40}


class Hasher(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file at one commit. `digest` in hexadecimal names its blob in the cache, as `huggingface_hub` does."""

    path: str
    n_bytes: int
    kind: HashKind
    digest: str

    def hasher(self) -> Hasher:
        """To be fed the whole content; its digest is then `digest`. A git blob is hashed behind its own header."""
        if self.kind is HashKind.SHA256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.n_bytes, usedforsecurity=False)

    @classmethod
    def of_sibling(cls, entry: Mapping[str, Any]) -> RemoteFile:
        """From one of the API's `siblings`. Raises HubError for a path, a size or a hash that no file can have."""
        path, lfs = entry.get("rfilename"), entry.get("lfs")
        kind = HashKind.GIT if lfs is None else HashKind.SHA256
        n_bytes = entry.get("size") if lfs is None else _get(lfs, "size")
        digest = entry.get("blobId") if lfs is None else _get(lfs, "sha256")
        if not isinstance(path, str) or not is_plain_path(path):
            raise HubError(f"the hub lists a file called {path!r:.80}, which would lie outside the model's directory")
        if type(n_bytes) is not int or not 0 <= n_bytes <= MAX_FILE_BYTES:
            raise HubError(f"the hub gives {path} a size of {n_bytes!r:.40} bytes")
        if not isinstance(digest, str) or not re.fullmatch(rf"[0-9a-f]{{{_DIGITS[kind]}}}", digest):
            raise HubError(f"the hub lists {path} without a hash", hint="a mirror (HF_ENDPOINT) must pass on `blobs=True`")
        return cls(path, n_bytes, kind, digest)


def _get(values: Any, name: str) -> Any:
    return values.get(name) if isinstance(values, Mapping) else None


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    repository: str
    commit: str
    files: Mapping[str, RemoteFile]

    @classmethod
    def of_info(cls, repository: str, info: Any) -> Listing:
        """From the answer of `/api/models/ORG/NAME/revision/REVISION?blobs=True`. Raises HubError when it is none."""
        commit, siblings = _get(info, "sha"), _get(info, "siblings")
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(siblings, list):
            raise HubError("what answered is no model hub", hint="check HF_ENDPOINT, and whether a login page is in between")
        if len(siblings) > MAX_FILES:
            raise HubError(f"{repository} has {len(siblings)} files: that is no model")
        files = [RemoteFile.of_sibling(entry) for entry in siblings if isinstance(entry, Mapping)]
        return cls(repository, commit, {file.path: file for file in files})
