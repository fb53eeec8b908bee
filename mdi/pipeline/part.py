"""The starter's own part of every plan: embedding and head, which stay, and its blocks, which change with the plan."""

from __future__ import annotations

from pathlib import Path

from mdi.engine.backend import Backend
from mdi.engine.protocol import Engine, StageShape
from mdi.model.packed import Embedding, PackedModel, open_packs
from mdi.model.packs import open_pack
from mdi.pipeline.problem import Workload
from mdi.plan.plan import BlockRange
from mdi.profile.memory import give_back_freed_memory


class OwnPart:
    """Loading takes seconds and belongs into a thread. Blocks are loaded after the others were let go: memory never holds both."""

    def __init__(self, packed: PackedModel, packs: Path, workload: Workload, backend: Backend, threads: int) -> None:
        """Loads the head. While it loads it lies in memory twice, and a large one would make the peak if blocks were there already."""
        self._packed = packed
        self._packs = packs
        self._backend = backend
        self._shape = StageShape(workload.n_slots, workload.ctx, threads, backend.kv_type(workload.kv_type))
        self.head = backend.make_head(packed.config, open_pack(packs / packed.head.filename), threads)
        self.embedding = Embedding(open_pack(packs / packed.embedding.filename), packed.config.embedding_scale)
        self._blocks = BlockRange(0, 0)
        self._engine: Engine | None = None

    def load(self, blocks: BlockRange) -> Engine | None:
        """The engine of these blocks, None for none. The one of other blocks is let go first: nobody else may hold it.

        The same blocks are not loaded again: what their KV holds is written over. Raises as `Backend.make_engine` does.
        """
        if blocks == self._blocks:
            return self._engine
        if self._engine is not None:
            self._engine, self._blocks = None, BlockRange(0, 0)
            self._backend.release()
            give_back_freed_memory()
        if len(blocks):
            packs = open_packs(self._packed, self._packs, blocks.start, blocks.stop)
            self._engine = self._backend.make_engine(self._packed.config, packs, self._shape, blocks.start)
        self._blocks = blocks
        return self._engine
