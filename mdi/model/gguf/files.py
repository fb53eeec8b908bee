"""All GGUF files of one model: one, or the parts of a split one (`name-00001-of-00004.gguf`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.fields import Fields
from mdi.model.gguf.cursor import AGAIN
from mdi.model.gguf.header import GgufFile, TensorInfo
from mdi.model.gguf.metadata import Metadata

SUFFIX = ".gguf"
MAX_PARTS = 1000  # the largest published models have some 50
SAMPLE_BYTES = 4096  # of a tensor's start, middle and end that go into the fingerprint
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Gguf:
    """One model's files. `metadata` is the first part's; tensors are those of all."""

    path: Path
    parts: tuple[GgufFile, ...]
    _where: Mapping[str, GgufFile]

    @classmethod
    def open(cls, path: Path) -> Gguf:
        """Opens the file, or all parts if it is one of a split model.

        Raises ModelError naming what is missing, damaged, or of another model.
        """
        paths = part_paths(path)
        parts = tuple(GgufFile.open(part) for part in paths)
        where = {name: part for part in parts for name in part.tensors}
        if len(parts) > 1 or "split.count" in parts[0].metadata:
            _check_split(parts, len(where))
        return cls(paths[0], parts, MappingProxyType(where))

    @property
    def metadata(self) -> Metadata:
        return self.parts[0].metadata

    @property
    def fields(self) -> Fields:
        """The metadata for typed reading."""
        return Fields(self.metadata, str(self.path))

    @property
    def architecture(self) -> str:
        return self.fields.text("general.architecture")

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {name: part.tensors[name] for name, part in self._where.items()}

    def info(self, name: str) -> TensorInfo | None:
        part = self._where.get(name)
        return None if part is None else part.tensors[name]

    def rows(self, name: str, first: int = 0, count: int | None = None) -> NDArray[np.uint8]:
        """As `GgufFile.rows`."""
        return self._where[name].rows(name, first, count)

    def fingerprint(self) -> str:
        """64 hexadecimal digits that stand for these weights, the same wherever the files lie.

        Hashed are every header, and 4 KiB from the start, middle and end of every tensor.
        """
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(f"{part.data.size}\n".encode())
            digest.update(part.data[: part.header_bytes].data)
            for tensor in part.tensors.values():
                for start in (tensor.start, (tensor.start + tensor.stop) // 2, max(tensor.start, tensor.stop - SAMPLE_BYTES)):
                    digest.update(part.data[start : min(start + SAMPLE_BYTES, tensor.stop)].data)
        return digest.hexdigest()


def model_name(path: Path) -> str:
    """What to call the model of a file: its name without part number and suffix."""
    match = _PART.fullmatch(path.name)
    return match[1] if match else path.name.removesuffix(SUFFIX)


def part_paths(path: Path) -> list[Path]:
    """The file itself, or every part of the split model that it belongs to. Raises ModelError for a part that is not there."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, number, count = match[1], int(match[2]), int(match[3])
    if not 1 <= number <= count <= MAX_PARTS:
        raise ModelError(f"{path.name} calls itself part {number} of {count}, which is not possible", hint=AGAIN)
    paths = [path.with_name(f"{stem}-{part:05}-of-{count:05}{SUFFIX}") for part in range(1, count + 1)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{path.parent} lacks {missing[0]}{more}: a split model needs all its parts", hint="download all parts"
        )
    return paths


def find(directory: Path) -> Path | None:
    """The one GGUF model in a directory, by its (first) file; None when there is none.

    Raises ModelError with their names when there are several.
    """
    files = sorted(path for path in directory.glob(f"*{SUFFIX}") if path.is_file())
    models = {model_name(path): path for path in reversed(files)}  # the first part of each
    if len(models) > 1:
        names = ", ".join(path.name for _, path in sorted(models.items())[:5])
        raise ModelError(f"{directory} holds {len(models)} GGUF models: {names}", hint="point --model at one of these files")
    return next(iter(models.values()), None)


def _check_split(parts: tuple[GgufFile, ...], n_tensors: int) -> None:
    for number, part in enumerate(parts):
        fields = Fields(part.metadata, str(part.path))
        found = fields.integer("split.no", least=0), fields.integer("split.count")
        if found != (number, len(parts)):
            raise ModelError(
                f"{part.path} calls itself part {found[0] + 1} of {found[1]}, but its name says {number + 1} of {len(parts)}",
                hint="keep the names that split files were published with, and download all parts",
            )
    if sum(len(part.tensors) for part in parts) != n_tensors:
        raise ModelError(f"{parts[0].path} and its other parts hold the same tensor twice", hint=AGAIN)
    expected = Fields(parts[0].metadata, str(parts[0].path)).integer("split.tensors.count", n_tensors, least=0)
    if expected != n_tensors:
        raise ModelError(f"{parts[0].path} means {expected} tensors, but its parts hold {n_tensors}", hint=AGAIN)
