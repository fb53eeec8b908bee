"""What an unfinished conversion has made already, so that the next one goes on where it was killed."""

from __future__ import annotations

import json
from pathlib import Path

from mdi.errors import ModelError
from mdi.model.packs import PackRef


class PartLog:
    """Packs by the part of the model that they hold, in a file of one JSON line each.

    A line is added when its pack is whole on the disk. What is cut short, damaged or no longer there counts as not made. Two processes
    that convert the same model at once write the same lines twice: packs are named by their content.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.made = _read(path)

    @property
    def n_bytes(self) -> int:
        """Of the packs that are made."""
        return sum(ref.n_bytes for ref in self.made.values())

    def add(self, part: str, ref: PackRef) -> None:
        self.made[part] = ref
        with self._path.open("a") as file:
            file.write(f"\n{json.dumps([part, ref.sha256, ref.n_bytes])}\n")  # after a line that was cut short, one of its own

    def close(self) -> None:
        """The conversion is complete."""
        self._path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, PackRef]:
    made: dict[str, PackRef] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError):
        return made
    for line in lines:
        try:
            part, sha256, n_bytes = json.loads(line)
            ref = PackRef(sha256, n_bytes)
            if (path.parent / ref.filename).stat().st_size == n_bytes:
                made[str(part)] = ref
        except (ValueError, TypeError, OSError, ModelError):
            continue
    return made
