"""The weights of a GGUF model as a `WeightSource`: by Hugging Face's names, in the order of rows that the engine computes with."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.config import ModelConfig
from mdi.model.families import Role
from mdi.model.gguf import types
from mdi.model.gguf.architectures import Architecture, architecture_of, paired_to_halves
from mdi.model.gguf.config import ROPE_FACTORS, read_config
from mdi.model.gguf.convert import FLOATS, TARGETS, codes, floats, readable, unreadable
from mdi.model.gguf.files import Gguf
from mdi.model.gguf.header import TensorInfo
from mdi.model.gguf.types import GgmlType
from mdi.model.linear import Linear, LinearPart, Quantised
from mdi.model.quantise import WeightFormat
from mdi.model.weights import StoredTable, StoredTensor

READER_VERSION = 1  # in fingerprints: packs made by another are made again
FLOAT_BITS: dict[GgmlType, np.dtype[Any]] = {
    types.F32: np.dtype("<f4"),
    types.F16: np.dtype("<f2"),
    types.BF16: np.dtype("<u2"),
}
ANOTHER = "download the model again, or choose another conversion"


@dataclass(frozen=True, slots=True)
class GgufWeights:
    """A `WeightSource`. `exact`: quantised matrices come as codes that mean just what the file says; else as fp32, to be rounded anew."""

    gguf: Gguf
    config: ModelConfig
    architecture: Architecture
    exact: bool = True

    @classmethod
    def open(cls, gguf: Gguf, config: ModelConfig | None = None, *, exact: bool = True) -> GgufWeights:
        """Checks every tensor against the config, and that none is left over: it would change what the model computes.

        Raises ModelError for a tensor that is missing, misshapen, of a type without a reader, or unknown.
        """
        weights = cls(gguf, config or read_config(gguf), architecture_of(gguf.fields), exact)
        weights._check()
        return weights

    @property
    def embedding(self) -> str:
        return self.config.family.embedding

    @property
    def head(self) -> str:
        return self.config.family.head if self.gguf.info("output.weight") else self.embedding

    @property
    def final_norm(self) -> str:
        return self.config.family.final_norm

    @property
    def quantised(self) -> bool:
        return self.exact and self.main_format() is not None

    def as_floats(self) -> GgufWeights:
        return replace(self, exact=False)

    def main_format(self) -> WeightFormat | None:
        """The exact form in which most of the blocks' values come; None when they are all floats."""
        sizes: Counter[WeightFormat] = Counter()
        for name in self._block_names():
            info = self._info(name)
            if len(info.shape) > 1 and info.type in TARGETS:
                sizes[WeightFormat(TARGETS[info.type].bits, TARGETS[info.type].block)] += math.prod(info.shape)
        return sizes.most_common(1)[0][0] if sizes else None

    def fingerprint(self) -> str:
        about = f"{self.gguf.fingerprint()} {self.config.to_json()} {READER_VERSION} {self.exact}"
        return hashlib.sha256(about.encode()).hexdigest()

    def inventory(self) -> Iterator[StoredTensor]:
        for info in self.gguf.tensors.values():
            yield StoredTensor(info.name, info.type.name, info.shape, info.n_bytes)

    def block_tensors(self, block: int) -> dict[Role, str]:
        names = self.config.family.block_tensors(block)
        return {role: names[role] for role in self.config.block_shapes(block)}

    def expert_tensors(self, block: int, expert: int) -> dict[Role, str]:
        return self.config.family.expert_tensors(block, expert)

    def tensor(self, name: str) -> NDArray[np.float32]:
        info = self._info(name)
        return floats(info.type, self._rows(name, info)).reshape(info.shape)

    def norm(self, name: str) -> NDArray[np.float32]:
        """As the file has it: what Hugging Face's files leave out, converters have added."""
        return self.tensor(name)

    def linear(self, name: str) -> Linear:
        info = self._info(name)
        rows = self._rows(name, info)
        return (codes(info.type, rows) if self.exact and info.type in TARGETS else floats(info.type, rows),)

    def forms(self, name: str) -> tuple[LinearPart, ...] | None:
        info = self._info(name)
        if not self.exact or info.type not in TARGETS:
            return None
        return (TARGETS[info.type].part(math.prod(info.shape[:-1]), info.shape[-1]),)

    def table(self, name: str) -> StoredTable | Quantised:
        info = self._info(name)
        rows = self.gguf.rows(info.name)
        if info.type in FLOATS:
            return rows.view(FLOAT_BITS[info.type]), info.type.name
        return codes(info.type, rows)

    def _rows(self, name: str, info: TensorInfo) -> NDArray[np.uint8]:
        """The bytes of a tensor, one row for each row of the matrix; of a vector, one row for each value."""
        rows = self.gguf.rows(info.name)
        if len(info.shape) == 1:
            rows = rows.reshape(info.shape[0], -1) if info.type in FLOATS else rows
        heads = self._paired_heads(name)
        return rows if heads is None else rows[paired_to_halves(heads, len(rows))]

    def _paired_heads(self, name: str) -> int | None:
        """Of how many heads the rows lie as pairs; None for those that lie as they should."""
        if not self.architecture.paired:
            return None
        if ".q_proj." in name:
            return self.config.n_heads
        return self.config.n_kv_heads if ".k_proj." in name else None

    def _info(self, name: str) -> TensorInfo:
        stored = self.architecture.tensor(name)
        info = None if stored is None else self.gguf.info(stored)
        if info is None:
            raise ModelError(f"{self.gguf.path} lacks the tensor {stored or name}", hint=ANOTHER)
        return info

    def _block_names(self) -> Iterable[str]:
        for block in range(self.config.n_blocks):
            yield from self.block_tensors(block).values()

    def _check(self) -> None:
        matrix = (self.config.vocab_size, self.config.d_model)
        expected = {self.embedding: matrix, self.head: matrix, self.final_norm: (self.config.d_model,)}
        for block in range(self.config.n_blocks):
            shapes = self.config.block_shapes(block)
            expected |= {name: shapes[role] for role, name in self.block_tensors(block).items()}
        used = {*ROPE_FACTORS}
        for name, shape in expected.items():
            info = self._info(name)
            used.add(info.name)
            self._check_tensor(info, shape)
        unknown = [name for name in self.gguf.tensors if name not in used]
        if unknown:
            raise ModelError(
                f"{self.gguf.path} holds the tensor {unknown[0]!r:.80}, which {self.architecture.name} models do not have here",
                hint=ANOTHER,
            )

    def _check_tensor(self, info: TensorInfo, shape: tuple[int, ...]) -> None:
        if info.shape != shape:
            raise ModelError(
                f"{info.name} in {self.gguf.path} has the shape {list(info.shape)}, but its metadata mean {list(shape)}",
                hint=ANOTHER,
            )
        if not readable(info.type) or (len(shape) == 1 and info.type not in FLOATS):
            raise unreadable(info.type)
