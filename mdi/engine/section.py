"""Consecutive blocks of a stage in an onnxruntime session of their own, and how arrays are bound to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

CPU = "cpu"


def bind_inputs(binding: ort.IOBinding, inputs: Mapping[str, NDArray[Any]]) -> None:
    """The arrays must live, and stay where they are, as long as the binding is used."""
    for name, array in inputs.items():
        binding.bind_input(name, CPU, 0, array.dtype, array.shape, array.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
    """The array must live as long as the binding is used."""
    binding.bind_output(name, CPU, 0, array.dtype, array.shape, array.ctypes.data)


class Section:
    """`kv` is [2 blocks, n_slots, n_kv_heads, ctx, head_dim], a block's keys before its values."""

    def __init__(self, session: ort.InferenceSession, kv: NDArray[Any]) -> None:
        self.session = session
        self._kv = kv
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}  # at most n_slots (n_slots + 1) / 2

    def binding(self, first_slot: int, n_rows: int) -> ort.IOBinding:
        """With KV of neighbouring slots; everything else is bound by whoever asks, who may not keep it."""
        if (first_slot, n_rows) not in self._bindings:
            self._bindings[first_slot, n_rows] = self.new_binding(first_slot, n_rows)
        return self._bindings[first_slot, n_rows]

    def new_binding(self, first_slot: int, n_rows: int) -> ort.IOBinding:
        """With KV of neighbouring slots, bound where it lies, as input and output alike."""
        binding = self.session.io_binding()
        for i in range(len(self._kv) // 2):
            for kind, plane in (("key", self._kv[2 * i]), ("value", self._kv[2 * i + 1])):
                view = plane[first_slot : first_slot + n_rows]
                bind_inputs(binding, {f"past_{kind}.{i}": view})
                bind_output(binding, f"present_{kind}.{i}", view)
        return binding
