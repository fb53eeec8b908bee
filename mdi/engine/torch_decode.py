"""Decode steps on a torch device: fixed buffers, and on CUDA one graph for each kind of step, launched whole.

A step is known by (first slot, rows, KV length): everything else is in the buffers. Graphs share one memory pool, because no two run at
once and none leaves anything in it that another needs: inputs, outputs and KV lie outside.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdi.engine.batch import Layout
from mdi.engine.torch_stage import TorchStage, row_class

# Graphs kept: one conversation of 4096 tokens needs 5, four of them 15 more. Each is a few hundred KiB of launches beside the pool.
MOST_GRAPHS = 64

_Kind: TypeAlias = tuple[int, int, int]


class DecodeSteps:
    """Not thread-safe. Everything is on the current stream, and each `run` waits for its result."""

    def __init__(self, stage: TorchStage) -> None:
        self._stage = stage
        on_cuda = stage.device.type == "cuda"
        size = (stage.n_slots, stage.d_model)
        self._hidden = torch.zeros(size, device=stage.device)
        self._out = torch.zeros(size, device=stage.device)
        self._positions = torch.zeros(stage.n_slots, dtype=torch.int64, device=stage.device)
        # Copies between a CUDA device and pinned memory need no copy of their own on the host, and may be queued.
        self._queued = on_cuda
        self._host_hidden = torch.zeros(size, pin_memory=on_cuda)
        self._host_out = torch.zeros(size, pin_memory=on_cuda)
        self._host_positions = torch.zeros(stage.n_slots, dtype=torch.int64, pin_memory=on_cuda)
        self._graphs: OrderedDict[_Kind, Any] | None = OrderedDict() if on_cuda else None
        self._pool = torch.cuda.graph_pool_handle() if on_cuda else None

    def run(self, layout: Layout, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """A step in which every span has one token: hidden [T, d_model] to the same."""
        n_rows = len(layout.query_lengths)
        rows = row_class(n_rows, self._stage.n_slots)
        first = min(layout.first_slot, self._stage.n_slots - rows)
        at = layout.unpad + (layout.first_slot - first)  # [T]: each token's row
        self._fill(rows, at, layout.last_position[layout.unpad], hidden)
        self._launch((first, rows, self._stage.length_class(int(layout.total))))
        self._host_out[:rows].copy_(self._out[:rows], non_blocking=self._queued)
        if self._queued:
            torch.cuda.current_stream(self._stage.device).synchronize()
        return self._host_out.numpy()[at]

    def _fill(self, rows: int, at: NDArray[np.int64], positions: NDArray[np.int32], hidden: NDArray[np.float32]) -> None:
        host_hidden, host_positions = self._host_hidden.numpy(), self._host_positions.numpy()
        if len(at) < rows:
            host_hidden[:rows] = 0
            host_positions[:rows] = self._stage.idle_position
        host_hidden[at] = hidden
        host_positions[at] = positions
        self._hidden[:rows].copy_(self._host_hidden[:rows], non_blocking=self._queued)
        self._positions[:rows].copy_(self._host_positions[:rows], non_blocking=self._queued)

    def _launch(self, kind: _Kind) -> None:
        if self._graphs is None:
            self._compute(kind)
        elif (graph := self._graphs.get(kind)) is not None:
            self._graphs.move_to_end(kind)
            graph.replay()
        else:
            self._compute(kind)  # this step's result, and the warm-up that a capture needs
            self._graphs[kind] = self._capture(kind)
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)

    def _capture(self, kind: _Kind) -> torch.cuda.CUDAGraph:
        """Records the step without running it. Other threads may load stages meanwhile: only this one's calls must be capturable."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._compute(kind)
        return graph

    def _compute(self, kind: _Kind) -> None:
        first, rows, length = kind
        self._rows(self._out, rows).copy_(
            self._stage.decode(self._rows(self._hidden, rows), self._rows(self._positions, rows), first, length)
        )

    @staticmethod
    def _rows(buffer: Tensor, rows: int) -> Tensor:
        return buffer[:rows]
