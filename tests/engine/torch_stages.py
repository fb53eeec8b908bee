"""A model cut into consecutive torch engines on the CPU, for the tests of the torch engine."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mdi.engine.protocol import StageShape
from mdi.engine.torch_engine import TorchEngine, TorchHead
from mdi.model.packed import Embedding, PackedModel, open_packs
from mdi.model.packs import open_pack
from mdi.wire.frame import Row

CPU = torch.device("cpu")
CTX = 64


class TorchStages:
    """`options` go to every engine: `dtype`, `kernels`."""

    def __init__(
        self, packed: PackedModel, directory: Path, split: tuple[int, ...], n_slots: int = 1, ctx: int = CTX, **options: Any
    ) -> None:
        shape = StageShape(n_slots, ctx, threads=1)
        bounds = np.cumsum((0, *split))
        self.engines = [
            TorchEngine(packed.config, open_packs(packed, directory, start, stop), shape, int(start), CPU, **options)
            for start, stop in itertools.pairwise(bounds)
        ]
        self._embedding = Embedding(open_pack(directory / packed.embedding.filename), packed.config.embedding_scale)
        self.head = TorchHead(packed.config, open_pack(directory / packed.head.filename), 1, CPU, **options)

    def logits(self, rows: list[Row], token_ids: list[int]) -> NDArray[np.float32]:
        hidden = self._embedding.rows(token_ids)
        for engine in self.engines:
            hidden = engine.forward(rows, hidden)
        return self.head.logits(hidden)
