"""The weights of a GGUF model as a `WeightSource`: by Hugging Face's names, in the order of rows that the engine computes with."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
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
from mdi.model.gguf.experts import ANOTHER, Rows, rows_of_expert, single_name, stacked_name
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
        for info in self.gguf.tensors.values():
            if info.name.startswith("blk.") and len(info.shape) > 1 and info.type in TARGETS:
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
        rows = self._rows(name)
        return floats(rows.info.type, self._read(name, rows)).reshape(rows.shape)

    def norm(self, name: str) -> NDArray[np.float32]:
        """As the file has it: what Hugging Face's files leave out, converters have added."""
        return self.tensor(name)

    def linear(self, name: str) -> Linear:
        rows = self._rows(name)
        stored, kind = self._read(name, rows), rows.info.type
        return (codes(kind, stored) if self.exact and kind in TARGETS else floats(kind, stored),)

    def forms(self, name: str) -> tuple[LinearPart, ...] | None:
        rows = self._rows(name)
        if not self.exact or rows.info.type not in TARGETS:
            return None
        return (TARGETS[rows.info.type].part(math.prod(rows.shape[:-1]), rows.shape[-1]),)

    def table(self, name: str) -> StoredTable | Quantised:
        info = self._rows(name).info
        rows = self.gguf.rows(info.name)
        if info.type in FLOATS:
            return rows.view(FLOAT_BITS[info.type]), info.type.name
        return codes(info.type, rows)

    def _read(self, name: str, rows: Rows) -> NDArray[np.uint8]:
        """The bytes of a tensor, one row for each row of the matrix; of a vector, one row for each value."""
        stored = self.gguf.rows(rows.info.name, rows.first, math.prod(rows.shape[:-1]))
        if len(rows.shape) == 1:
            stored = stored.reshape(rows.shape[0], -1) if rows.info.type in FLOATS else stored
        heads = self._paired_heads(name)
        return stored if heads is None else stored[paired_to_halves(heads, len(stored))]

    def _paired_heads(self, name: str) -> int | None:
        """Of how many heads the rows lie as pairs; None for those that lie as they should."""
        if not self.architecture.paired:
            return None
        if ".q_proj." in name:
            return self.config.n_heads
        return self.config.n_kv_heads if ".k_proj." in name else None

    def _rows(self, name: str) -> Rows:
        """Where a tensor of Hugging Face's name lies. Raises ModelError when the file lacks it."""
        place = self.architecture.expert(name)
        if place is None:
            return Rows.whole(self._info(self.architecture.tensor(name) or name))
        block, module, expert = place
        stacked = self.gguf.info(stacked_name(block, module))
        if stacked is not None:
            return rows_of_expert(stacked, int(expert))
        singles = self.gguf.info(single_name(block, module, "0")) is not None
        return Rows.whole(self._info(single_name(block, module, expert) if singles else stacked_name(block, module)))

    def _info(self, stored: str) -> TensorInfo:
        info = self.gguf.info(stored)
        if info is None:
            raise ModelError(f"{self.gguf.path} lacks the tensor {stored}", hint=ANOTHER)
        return info

    def _check(self) -> None:
        used = {*ROPE_FACTORS}
        for name, shape in self._expected():
            rows = self._rows(name)
            used.add(rows.info.name)
            self._check_rows(rows, shape)
        unknown = [name for name in self.gguf.tensors if name not in used]
        if unknown:
            raise ModelError(
                f"{self.gguf.path} holds the tensor {unknown[0]!r:.80}, which {self.architecture.name} models do not have here",
                hint=ANOTHER,
            )

    def _expected(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor that the config promises, with its shape: one at a time, for it may promise millions of experts."""
        matrix = (self.config.vocab_size, self.config.d_model)
        yield from ((self.embedding, matrix), (self.head, matrix), (self.final_norm, (self.config.d_model,)))
        for block in range(self.config.n_blocks):
            shapes = self.config.block_shapes(block)
            yield from ((name, shapes[role]) for role, name in self.block_tensors(block).items())
            if block in self.config.sparse_blocks:
                yield from self._expected_experts(block)

    def _expected_experts(self, block: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Of experts in one tensor only the last: when it has its place there and none is left over, so have all."""
        assert self.config.experts is not None
        n_experts, shapes = self.config.experts.n_experts, self.config.expert_shapes()
        for role, name in self.expert_tensors(block, n_experts - 1).items():
            info = self._rows(name).info
            if len(info.shape) == 3 and info.shape[0] != n_experts:
                raise ModelError(
                    f"{info.name} in {self.gguf.path} holds {info.shape[0]} experts, but its metadata mean {n_experts}",
                    hint=ANOTHER,
                )
            experts = range(n_experts) if len(info.shape) == 2 else (n_experts - 1,)
            yield from ((self.expert_tensors(block, expert)[role], shapes[role]) for expert in experts)

    def _check_rows(self, rows: Rows, shape: tuple[int, ...]) -> None:
        if rows.shape != shape:
            raise ModelError(
                f"{rows.info.name} in {self.gguf.path} has the shape {list(rows.shape)}, but its metadata mean {list(shape)}",
                hint=ANOTHER,
            )
        kind = rows.info.type
        if not readable(kind):
            raise unreadable(kind, f"{rows.info.name} in {self.gguf.path}")
        if len(shape) == 1 and kind not in FLOATS:
            raise ModelError(f"{rows.info.name} in {self.gguf.path} is stored as {kind.name}, and must be floats", hint=ANOTHER)
