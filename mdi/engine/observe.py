"""What a block computes with: what its linear layers read, and its keys and values. See `mdi.model.calibration`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdi.engine.batch import Layout
from mdi.engine.onnx_engine import open_session
from mdi.engine.stage_graph import SQUARES, stage_graph
from mdi.model.calibration import Seen
from mdi.model.config import ModelConfig
from mdi.model.kv import kv_scales
from mdi.model.packs import Pack

KV_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


@dataclass(frozen=True, slots=True)
class _Whole:
    """A sequence from its beginning, in the only slot."""

    count: int
    slot: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class BlockObserver:
    """An `Observer` on onnxruntime: one session per block, gone when its answer is there."""

    config: ModelConfig
    threads: int

    def __call__(self, pack: Pack, block: int, hidden: NDArray[np.float32]) -> Seen:
        graph = stage_graph(self.config, [pack], len(hidden), block, observed=True)
        session = open_session(graph, pack.path.parent, self.threads)
        layout = Layout.of([_Whole(len(hidden))])
        feeds = {"hidden": hidden} | {
            name: getattr(layout, name) for name in ("pad", "unpad", "query_lengths", "last_position", "total")
        }
        for each in session.get_inputs():
            if each.name not in feeds:
                feeds[each.name] = np.zeros([1, *each.shape[1:]], KV_TYPES[each.type])
        names = [each.name for each in session.get_outputs() if each.name.startswith(SQUARES)]
        after, keys, values, *sums = session.run(["hidden_out", "present_key.0", "present_value.0", *names], feeds)
        squares = {name.removeprefix(SQUARES): total / len(hidden) for name, total in zip(names, sums, strict=True)}
        rope = self.config.rope_of(block)
        rotated = 0 if rope is None else rope.rotated(self.config.head_dim)
        return Seen(after, squares, kv_scales(keys[0], values[0], rotated))
