"""A decoding step with everything bound once: the same slots, a token each, come again and again.

Making tensors and binding them costs more than anything else that a step does beside its blocks, above all when weights have just
passed through the caches: 0.3 ms a step, and here 0.1 (two stages of one token pay it twice).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi.engine.batch import Layout, Span
from mdi.engine.section import Section, bind_inputs, bind_output


class DecodeStep:
    """A step of one token for each of the slots that `layout` was made of. Each run writes positions and hidden states into its tensors."""

    def __init__(self, sections: Sequence[Section], layout: Layout, constant: Mapping[str, NDArray[Any]], d_model: int) -> None:
        """`constant`: further inputs, which are the same in every such step."""
        self._first_slot = layout.first_slot
        self._last_position, self._total = layout.last_position, layout.total
        self._inputs = {**constant, **layout.inputs}
        # Before the first section, between sections, behind the last.
        self._hidden = [np.empty((len(layout.unpad), d_model), np.float32) for _ in range(len(sections) + 1)]
        self._runs = []
        for i, section in enumerate(sections):
            binding = section.new_binding(layout.first_slot, len(layout.query_lengths))
            bind_inputs(binding, self._inputs | {"hidden": self._hidden[i]})
            bind_output(binding, "hidden_out", self._hidden[i + 1])
            self._runs.append((section.session, binding))

    def run(self, spans: Sequence[Span], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """`hidden` [spans, d_model], as is the result."""
        longest = 0
        for span in spans:
            self._last_position[span.slot - self._first_slot] = span.position
            longest = max(longest, span.position)
        self._total[()] = longest + 1
        self._hidden[0][...] = hidden
        for session, binding in self._runs:
            session.run_with_iobinding(binding)
        return self._hidden[-1].copy()
