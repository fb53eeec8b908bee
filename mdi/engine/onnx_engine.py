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
from mdi.engine.graph import head_graph
from mdi.engine.huge_pages import use_huge_pages
from mdi.engine.kv_plan import KvPlan
from mdi.engine.protocol import StageShape
from mdi.engine.stage_graph import stage_graph
from mdi.errors import InternalError, ModelError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.packs import Pack

CPU = "cpu"
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


class Section:
    """Consecutive blocks of a stage in a session of their own. `kv` is [2 blocks, n_slots, n_kv_heads, ctx, head_dim]."""

    def __init__(self, session: ort.InferenceSession, kv: NDArray[Any]) -> None:
        self.session = session
        self._kv = kv
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}  # at most n_slots (n_slots + 1) / 2

    def binding(self, first_slot: int, n_rows: int) -> ort.IOBinding:
        """KV of neighbouring slots, bound where it lies, as input and output alike."""
        if binding := self._bindings.get((first_slot, n_rows)):
            return binding
        binding = self.session.io_binding()
        for i in range(len(self._kv) // 2):
            for kind, plane in (("key", self._kv[2 * i]), ("value", self._kv[2 * i + 1])):
                view = plane[first_slot : first_slot + n_rows]
                binding.bind_input(f"past_{kind}.{i}", CPU, 0, view.dtype, view.shape, view.ctypes.data)
                binding.bind_output(f"present_{kind}.{i}", CPU, 0, view.dtype, view.shape, view.ctypes.data)
        self._bindings[first_slot, n_rows] = binding
        return binding


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

    def forward(self, spans: Sequence[Span], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        layout = Layout.of(spans)
        if int(layout.total) > self._shape.ctx or layout.first_slot + len(layout.query_lengths) > self._shape.n_slots:
            raise InternalError(f"step outside the stage's {self._shape.n_slots} slots of {self._shape.ctx} tokens")
        if len(spans) > 1 and layout.reach > self._shape.ctx:
            # The kernel wants room in KV for padding too, which a slot that is nearly full has not: each by itself needs none.
            bounds = np.cumsum([0, *(span.count for span in spans)])
            parts = itertools.pairwise(bounds)
            return np.concatenate([self.forward([s], hidden[i:j]) for s, (i, j) in zip(spans, parts, strict=True)])
        inputs: dict[str, NDArray[Any]] = {
            "pad": layout.pad,
            "unpad": layout.unpad,
            "query_lengths": layout.query_lengths,
            "last_position": layout.last_position,
            "total": layout.total,
        }
        if self._plan is not None:
            inputs |= self._plan.inputs(layout)
        options = GIVE_BACK if len(self._sections) > 1 and layout.pad.shape[1] > 1 else None
        hidden = np.ascontiguousarray(hidden, np.float32)
        for section in self._sections:
            out = np.empty(hidden.shape, np.float32)
            binding = section.binding(layout.first_slot, len(layout.query_lengths))
            for name, array in {"hidden": hidden, **inputs}.items():
                binding.bind_input(name, CPU, 0, array.dtype, array.shape, array.ctypes.data)
            binding.bind_output("hidden_out", CPU, 0, np.float32, out.shape, out.ctypes.data)
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
