"""What a model's linear layers get to read, and how large its keys and values are, seen without data: a few random tokens pass through
its blocks while these are converted.

How large each input column is depends on the model far more than on the text: random tokens show it nearly as well as real text
(docs/quantisation.md). Blocks whose 4 bits are weighed by it compute here with 8, so that each sees what it would see in the unrounded
model; others compute as they are.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdi.errors import ModelError
from mdi.model.kv import KvScales
from mdi.model.linear import Linear
from mdi.model.packs import Pack, PackKind, clear_stale, open_pack, write_pack

N_TOKENS = 128  # 64 and 256 give the same perplexity within its noise
SEED = 0
SCRATCH_PREFIX = ".observed-"
PLAIN_HINT = "try --quant int4-plain --kv-type fp32, which does not look at what it computes"

Squares = Mapping[str, NDArray[np.float32]]
"""By the name of a linear layer in its pack: the mean square of every column of its input [K]."""

Tensors = Mapping[str, NDArray[Any] | Linear]
"""Of a block's pack."""

Reference = Callable[[int], Tensors]
"""A block as it is to be observed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one block: what comes out of it [T, d_model], what its linear layers read, and what its keys and values need."""

    hidden: NDArray[np.float32]
    squares: Squares
    kv: KvScales


class Observer(Protocol):
    """Computes one block, and tells what it saw."""

    def __call__(self, pack: Pack, block: int, hidden: NDArray[np.float32]) -> Seen:
        """Block number `block` of the model on one sequence [T, d_model] from position 0."""


def normed_squares(hidden: NDArray[np.float32], norm: NDArray[np.float32], eps: float) -> NDArray[np.float32]:
    """Mean squares [d_model] of RMSNorm(hidden [T, d_model]): what the head reads."""
    normed = hidden / np.sqrt((hidden * hidden).mean(-1, keepdims=True) + np.float32(eps)) * norm
    result: NDArray[np.float32] = (normed * normed).mean(0)
    return result


def random_tokens(vocab_size: int) -> list[int]:
    """The same ones for all models of that vocabulary."""
    tokens: list[int] = np.random.default_rng(SEED).integers(0, vocab_size, N_TOKENS).tolist()
    return tokens


class HiddenState:
    """The tokens' hidden states before a block, in a file, so that a killed conversion need not compute all blocks again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, block: int, hidden: NDArray[np.float32]) -> None:
        whole = self._path.with_name(f"{self._path.name}.partial")
        with whole.open("wb") as file:
            file.write(block.to_bytes(8, "little"))
            np.save(file, hidden)
        whole.replace(self._path)

    def load(self, shape: tuple[int, ...]) -> tuple[int, NDArray[np.float32]] | None:
        """The block and the states before it, or None. What is damaged counts as absent."""
        try:
            with self._path.open("rb") as file:
                block, hidden = int.from_bytes(file.read(8), "little"), np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return (block, hidden) if hidden.shape == shape and hidden.dtype == np.float32 else None

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class Calibration:
    """What is seen, block after block. Blocks that were converted before are computed again only if their hidden states are lost."""

    def __init__(
        self, observer: Observer, start: NDArray[np.float32], reference: Reference, state: HiddenState, directory: Path
    ) -> None:
        """`start`: the tokens' embeddings [T, d_model]. `directory` is for a block's pack at a time."""
        self._observer = observer
        self._start = start
        self._reference = reference
        self._state = state
        self._directory = directory
        self._next, self._hidden = state.load(start.shape) or (0, start)

    def seen(self, block: int, tensors: Tensors | None = None) -> Seen:
        """What a block does as `tensors`, or else as its reference.

        Raises ModelError when the model computes values that are not finite: it would be rounded by them.
        """
        self._state.save(block, self.before(block))
        seen = self._observe(tensors or self._reference(block))
        for name, values in (*seen.squares.items(), ("keys", seen.kv.keys), ("values", seen.kv.values)):
            if not np.isfinite(values).all():
                raise ModelError(f"block {block} computes values that are not finite for {name}", hint=PLAIN_HINT)
        return seen

    def before(self, block: int) -> NDArray[np.float32]:
        """Hidden states [T, d_model] before a block; after the last one for the number of blocks."""
        if self._next > block:
            self._next, self._hidden = 0, self._start
        while self._next < block:
            self._observe(self._reference(self._next))
        return self._hidden

    def _observe(self, tensors: Tensors) -> Seen:
        with _scratch(self._directory) as place:
            ref = write_pack(place, PackKind.BLOCK, tensors, durable=False)
            seen = self._observer(open_pack(place / ref.filename), self._next, self._hidden)
        self._next, self._hidden = self._next + 1, seen.hidden
        return seen


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A directory inside `directory` that is gone afterwards; what a killed process left there is cleared away."""
    clear_stale(directory, SCRATCH_PREFIX)
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=directory) as name:
        yield Path(name)
