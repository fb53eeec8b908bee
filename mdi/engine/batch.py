"""How the rows of a step lie in the tensors that an engine computes on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdi.errors import InternalError


class Span(Protocol):
    """`count` new tokens of the sequence in KV slot `slot`, of which `position` tokens are already in KV."""

    @property
    def slot(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def count(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """A step's T tokens, packed without gaps for the matrix products and padded to [B, S] for attention only.

    B rows stand for the slots `[first_slot, first_slot + B)`: attention reads KV of neighbouring slots in place, so a slot between two
    busy ones takes part with a query of length 0.
    """

    first_slot: int
    pad: NDArray[np.int64]  # [B, S]: which token stands there; padding repeats token 0
    unpad: NDArray[np.int64]  # [T]: where in the flattened [B S] each token stands
    query_lengths: NDArray[np.int32]  # [B]
    last_position: NDArray[np.int32]  # [B]
    total: NDArray[np.int32]  # []: longest KV after the step

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """By the names that they have in the graph."""
        return {
            "pad": self.pad,
            "unpad": self.unpad,
            "query_lengths": self.query_lengths,
            "last_position": self.last_position,
            "total": self.total,
        }

    @property
    def reach(self) -> int:
        """How many tokens of KV attention touches with its padding: every row is padded to the longest."""
        starts = self.last_position - self.query_lengths + 1
        return int(starts.max()) + int(self.pad.shape[1])

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Layout:
        slots = [span.slot for span in spans]
        first, n_rows = min(slots), max(slots) - min(slots) + 1
        longest = max(span.count for span in spans)
        if len(set(slots)) != len(slots) or min(span.count for span in spans) < 1:
            raise InternalError("a step must hold each slot once, with at least one token")
        pad = np.zeros((n_rows, longest), np.int64)
        unpad = np.empty(sum(span.count for span in spans), np.int64)
        query_lengths = np.zeros(n_rows, np.int32)
        last_position = np.zeros(n_rows, np.int32)
        token = 0
        for span in spans:
            row, count = span.slot - first, span.count
            pad[row, :count] = np.arange(token, token + count)
            unpad[token : token + count] = np.arange(row * longest, row * longest + count)
            query_lengths[row] = count
            last_position[row] = span.position + count - 1
            token += count
        total = np.array(max(span.position + span.count for span in spans), np.int32)
        return cls(first, pad, unpad, query_lengths, last_position, total)
