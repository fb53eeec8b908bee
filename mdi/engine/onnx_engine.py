"""The onnxruntime engine: a stage's blocks in one session or a few, KV bound in place."""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mdi.engine.batch import Layout, Span
from mdi.engine.decode_step import DecodeStep
from mdi.engine.graph import head_graph
from mdi.engine.huge_pages import use_huge_pages
from mdi.engine.kv_plan import KvPlan
from mdi.engine.protocol import StageShape
from mdi.engine.section import Section, bind_inputs, bind_output
from mdi.engine.stage_graph import stage_graph
from mdi.errors import InternalError, ModelError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.packs import Pack

MOST_DECODE_STEPS = 64  # of different slots; each takes some 10 KiB a block, and is made anew in a millisecond
# onnxruntime lays out a session's weights in one thread, and most of that time goes into new memory: several sessions load at once.
# Each of them wakes its threads anew with every token, which nobody notices beside so many weights.
MIN_SESSION_BYTES = 1 << 30
MAX_SESSIONS = 4  # more load no faster: they wait for memory
# Each session would keep what its largest step took, 90 MiB for 128 tokens of a 7B model, though they run one after another. To take it
# anew costs 1 % of such a step's time, but would cost more of a decode step's.
GIVE_BACK = ort.RunOptions()
GIVE_BACK.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")


def open_session(model: bytes, packs_directory: Path, threads: int) -> ort.InferenceSession:
    """A session whose external weights lie in `packs_directory`. Raises ModelError when onnxruntime refuses the graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A pattern would be kept for every shape of a step, with a block of its own at the next: 26 MiB for two prompts of 128 tokens.
    options.enable_mem_pattern = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(packs_directory))
    # Threads that spin after a run would take the cores from the head's session, the event loop and the network.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Prepacked weights outside the arena: it would round each allocation up to a power of two.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class below Exception
        raise ModelError(f"onnxruntime cannot load the weights: {error}") from error


def open_sessions(graphs: Sequence[bytes], packs_directory: Path, threads: int) -> list[ort.InferenceSession]:
    """Opens them at once, each in a thread of its own. Raises as `open_session` does."""
    with ThreadPoolExecutor(len(graphs), "load") as pool:
        return list(pool.map(lambda graph: open_session(graph, packs_directory, threads), graphs))


def sections(n_blocks: int, weight_bytes: int, threads: int) -> list[range]:
    """Consecutive blocks that load at once, about as many in each."""
    count = max(1, min(threads, n_blocks, MAX_SESSIONS, weight_bytes // MIN_SESSION_BYTES))
    bounds = [n_blocks * i // count for i in range(count + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(bounds)]


def untouched(shape: tuple[int, ...], dtype: type[np.float32] | type[np.int8] = np.float32) -> NDArray[Any]:
    """Zeros that take memory page by page as they are written.

    In huge pages the first tokens of each head would take 2 MiB of their own: three times the memory of a short conversation.
    """
    memory = mmap.mmap(-1, np.dtype(dtype).itemsize * math.prod(shape))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


class OnnxEngine:
    """An Engine (see `protocol.py`) on onnxruntime's CPU kernels. `packs`, in one directory, are the model's blocks from `first_block`."""

    def __init__(self, config: ModelConfig, packs: Sequence[Pack], shape: StageShape, first_block: int) -> None:
        if not packs:
            raise InternalError("a stage has at least one block")
        self._config = config
        self._shape = shape
        if shape.kv_type is KvType.HALF:
            raise InternalError("onnxruntime's engine has KV in fp32 or int8")
        self._plan = KvPlan.of(config, shape.ctx) if shape.kv_type is KvType.INT8 else None
        self.weight_bytes = sum(pack.path.stat().st_size for pack in packs)
        blocks = sections(len(packs), self.weight_bytes, shape.threads)
        graphs = [
            stage_graph(config, packs[part.start : part.stop], shape.ctx, first_block + part.start, kv_type=shape.kv_type)
            for part in blocks
        ]
        sessions = open_sessions(graphs, packs[0].path.parent, shape.threads)
        use_huge_pages(self.weight_bytes)
        kv_shape = (2 * len(packs), shape.n_slots, config.n_kv_heads, shape.ctx, config.head_dim)
        kv = untouched(kv_shape, np.int8 if self._plan else np.float32)
        self.kv_bytes = kv.nbytes
        self._sections = [
            Section(session, kv[2 * part.start : 2 * part.stop]) for session, part in zip(sessions, blocks, strict=True)
        ]
        self._decoding: dict[tuple[int, ...], DecodeStep] = {}

    def forward(self, spans: Sequence[Span], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        slots = tuple([span.slot for span in spans]) if len(hidden) == len(spans) else None  # None: not all of one token
        if slots and (step := self._decoding.get(slots)) and max([span.position for span in spans]) < self._shape.ctx:
            return step.run(spans, hidden)
        layout = Layout.of(spans)
        if int(layout.total) > self._shape.ctx or layout.first_slot + len(layout.query_lengths) > self._shape.n_slots:
            raise InternalError(f"step outside the stage's {self._shape.n_slots} slots of {self._shape.ctx} tokens")
        if len(spans) > 1 and layout.reach > self._shape.ctx:
            # The kernel wants room in KV for padding too, which a slot that is nearly full has not: each by itself needs none.
            bounds = np.cumsum([0, *(span.count for span in spans)])
            parts = itertools.pairwise(bounds)
            return np.concatenate([self.forward([s], hidden[i:j]) for s, (i, j) in zip(spans, parts, strict=True)])
        extra = self._plan.inputs(layout) if self._plan is not None else {}
        if slots and (self._plan is None or not self._plan.may_expand(1)):
            return self._kept(slots, layout, extra).run(spans, hidden)
        return self._once(layout, extra | layout.inputs, np.ascontiguousarray(hidden, np.float32))

    def _kept(self, slots: tuple[int, ...], layout: Layout, extra: dict[str, NDArray[Any]]) -> DecodeStep:
        """A new one; the oldest makes room for it."""
        while len(self._decoding) >= MOST_DECODE_STEPS:
            del self._decoding[next(iter(self._decoding))]
        step = self._decoding[slots] = DecodeStep(self._sections, layout, extra, self._config.d_model)
        return step

    def _once(self, layout: Layout, inputs: dict[str, NDArray[Any]], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        options = GIVE_BACK if len(self._sections) > 1 and layout.pad.shape[1] > 1 else None
        for section in self._sections:
            out = np.empty(hidden.shape, np.float32)
            binding = section.binding(layout.first_slot, len(layout.query_lengths))
            bind_inputs(binding, inputs | {"hidden": hidden})
            bind_output(binding, "hidden_out", out)
            section.session.run_with_iobinding(binding, options)
            hidden = out
        return hidden


class Head:
    """Final norm and output matrix on the starter."""

    def __init__(self, config: ModelConfig, pack: Pack, threads: int) -> None:
        self._session = open_session(head_graph(config, pack), pack.path.parent, threads)
        self.weight_bytes = pack.path.stat().st_size
        use_huge_pages(self.weight_bytes)

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """[R, d_model] to [R, vocab_size]."""
        result: NDArray[np.float32] = self._session.run(["logits"], {"hidden": hidden})[0]
        return result
