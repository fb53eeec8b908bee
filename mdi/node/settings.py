"""`mdi.toml`: what a node is told by a file instead of options, such as the one on the boot partition of an SD card.

    name = "attic"                         # how others see this device
    key_file = "cluster.key"               # a file beside this one that holds the cluster key
    max_memory = "2GiB"                    # offer at most this much
    threads = 3                            # of the processor's
    peers = ["desk.local", "10.0.0.7"]     # nodes that mDNS does not find

Everything may be left out. People write the file by hand on other systems, so a byte order mark and CRLF are taken.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi.cluster.members import MAX_NAME_CHARACTERS
from mdi.cluster.peers import parse_peer
from mdi.engine.protocol import check_threads
from mdi.errors import UserError
from mdi.profile.memory import parse_bytes

MAX_FILE_BYTES = 16 << 10  # MAX_PEERS names of 253 characters; a wrong path must not read a disk into memory
MAX_PEERS = 32  # a home has a handful: with hundreds every command would wait for the dead ones
MAX_KEY_FILE_CHARACTERS = 100
KNOWN = ("key_file", "max_memory", "name", "peers", "threads")

# A plain file name: with a path, whoever edits the card could have root move any file of the system.
_FILE_NAME = re.compile(rf"(?!\.)[A-Za-z0-9._-]{{1,{MAX_KEY_FILE_CHARACTERS}}}")


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """The file's content; None and () stand for what it leaves out. `key_file` is a file's name, without a directory."""

    name: str | None = None
    key_file: str | None = None
    max_memory_bytes: int | None = None
    threads: int | None = None
    peers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name is not None and not (self.name.isprintable() and 1 <= len(self.name.strip()) <= MAX_NAME_CHARACTERS):
            raise UserError(f"name must be a text of 1 to {MAX_NAME_CHARACTERS} characters", hint='such as name = "attic"')
        if self.key_file is not None and not _FILE_NAME.fullmatch(self.key_file):
            raise UserError(
                f"key_file {self.key_file[:MAX_KEY_FILE_CHARACTERS]!r} is not the name of a file beside mdi.toml",
                hint='put the key into the same directory and write its name, such as key_file = "cluster.key"',
            )
        check_threads(self.threads)
        if len(self.peers) > MAX_PEERS:
            raise UserError(f"{len(self.peers)} peers are more than {MAX_PEERS}", hint="mDNS finds the others")
        for peer in self.peers:
            parse_peer(peer)


def read_settings(path: Path) -> NodeSettings:
    """Raises UserError, which names the file and the key, for what cannot be read, is not TOML, or says what cannot be."""
    return parse_settings(read_bounded(path), str(path))


def read_bounded(path: Path) -> bytes:
    """A small file that a person wrote. Raises UserError; FIFOs and devices, which may never end, are no files."""
    try:
        if not path.is_file():
            raise UserError(f"{path} is not there, or is no file", hint="check the path")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', error)}", hint="check its owner and mode"
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 10} KiB: it is not a file of MDI", hint="check the path")
    return data


def parse_settings(data: bytes, place: str) -> NodeSettings:
    """`place` names the file in errors. Raises UserError."""
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{place} is not TOML: {error}", hint='a line looks like name = "attic"') from None
    if unknown := sorted(table.keys() - set(KNOWN)):
        raise UserError(f"{place}: {unknown[0][:60]!r} is not known", hint=f"known here: {', '.join(KNOWN)}")
    try:
        memory = _text(table, "max_memory")
        return NodeSettings(
            name=_text(table, "name"),
            key_file=_text(table, "key_file"),
            max_memory_bytes=None if memory is None else parse_bytes(memory),
            threads=_whole(table, "threads"),
            peers=_texts(table, "peers"),
        )
    except UserError as error:
        raise UserError(f"{place}: {error}", hint=error.hint) from error


def _text(table: Mapping[str, Any], key: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{key} must be a text in quotes", hint=f'write it like {key} = "..."')
    return value


def _whole(table: Mapping[str, Any], key: str) -> int | None:
    value = table.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise UserError(f"{key} must be a whole number", hint=f"write it like {key} = 3")
    return value


def _texts(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{key} must be a list of texts", hint=f'write it like {key} = ["desk.local"]')
    return tuple(value)
