"""What a model's weights are, whatever file they come from: the one door between readers of checkpoints and packs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdi.model.config import ModelConfig
from mdi.model.families import Role
from mdi.model.linear import Linear, LinearPart, Quantised
from mdi.model.quantise import WeightFormat

StoredTable = tuple[NDArray[Any], str]
"""Values in the file's own type, and that type: "F32", "F16", or "BF16" as uint16 bits."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: `kind` is its type as the file's format calls it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    n_bytes: int


class WeightSource(Protocol):
    """The weights of one model, checked against its config before this object exists; its files must not change while it is open.

    Names are the file's own; `block_tensors`, `embedding`, `head` and `final_norm` say which do what. Everything is read when it is asked
    for, one tensor at a time, and nothing is kept: a model is larger than memory. All methods raise ModelError for a file that fails.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def embedding(self) -> str: ...

    @property
    def head(self) -> str:
        """Equal to `embedding` when the head is the embedding."""

    @property
    def final_norm(self) -> str: ...

    @property
    def quantised(self) -> bool:
        """Whether some linear layers come as codes. Those that do not were left as floats because they are sensitive."""

    def as_floats(self) -> WeightSource:
        """The same weights with nothing as codes, to be rounded anew."""

    def main_format(self) -> WeightFormat | None:
        """The form in which most of the blocks' values come; None when they are all floats."""

    def fingerprint(self) -> str:
        """64 hexadecimal digits that stand for these weights and for how this reader understands them."""

    def inventory(self) -> Iterator[StoredTensor]:
        """Every tensor of the files, used or not, in the files' order."""

    def block_tensors(self, block: int) -> dict[Role, str]:
        """Names of the tensors that one block has, by what they do; its experts' aside. Matrices are for `linear`, norms for `norm`."""

    def expert_tensors(self, block: int, expert: int) -> dict[Role, str]:
        """Names of one expert's gate, up and down in a sparse block."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A bias or a router in fp32, shaped as the config says. The array is the caller's own."""

    def norm(self, name: str) -> NDArray[np.float32]:
        """A norm's weight as it multiplies, in fp32."""

    def forms(self, name: str) -> tuple[LinearPart, ...] | None:
        """The forms that `linear` will give a matrix in, without reading it and so as far as it can be told; None for floats."""

    def linear(self, name: str) -> Linear:
        """A matrix [out, in], rows in the order that the engine computes with (rotary halves, not interleaved pairs).

        It comes as parts from the top to the bottom: fp32 [N, K], which the packs may round as the user chose, or `Quantised`, which is
        stored exactly as it is. Rows are never reordered, and parts are joined, by the caller.
        """

    def table(self, name: str) -> StoredTable | Quantised:
        """The embedding [vocab_size, d_model], as it is stored. It may be a view of the file."""
