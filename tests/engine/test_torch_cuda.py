"""The torch engine on a real GPU: skipped where there is none. What runs here alone are graphs, compiled kernels and bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mdi.engine.backend import choose_backend
from mdi.engine.protocol import StageShape
from mdi.engine.torch_engine import TorchEngine, TorchHead
from mdi.model.checkpoint import Checkpoint
from mdi.model.packed import Embedding, PackedModel, open_packs, prepare
from mdi.model.packs import open_pack
from mdi.model.quantise import Quant, WeightFormat
from mdi.wire.frame import Row
from tests.checkpoints import make_checkpoint
from tests.engine.torch_stages import CPU

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.filterwarnings("default"),  # torch's compiler warns of its own imports
]
N_BLOCKS, N_SLOTS, CTX = 3, 4, 600
LEAST_COSINE = 0.99  # bfloat16 against fp32 through three blocks; measured on the CPU: 0.995 with gemma3, 0.9999 with others
LEAST_SPARSE_COSINE = 0.95  # rounding makes some tokens choose other experts; measured on the CPU: 0.983 with mixtral


MODELS = [
    *(("llama", quant) for quant in (Quant.NONE, Quant.INT8, Quant.INT4)),
    *((kind, Quant.INT4) for kind in ("gemma3", "phi3", "llama-biases", "smollm3-window")),
    *((kind, quant) for kind in ("gemma2", "mixtral", "qwen3moe") for quant in (Quant.NONE, Quant.INT4)),
]


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: f"{model[0]}-{model[1]}")
def packs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedModel, Path]:
    directory = tmp_path_factory.mktemp("model")
    kind, quant = request.param
    # Shapes of which every kernel takes its ordinary way; initial weights as small as trained ones.
    path = make_checkpoint(
        directory / "m",
        kind,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=N_BLOCKS,
        max_position_embeddings=1024,
        initializer_range=0.02,
    )
    fmt = WeightFormat.of(quant, 64)
    return prepare(Checkpoint.open(path), fmt, directory / "packs"), directory / "packs"


class Model:
    def __init__(self, packs: tuple[PackedModel, Path], device: torch.device) -> None:
        packed, directory = packs
        blocks = open_packs(packed, directory, 0, N_BLOCKS)
        self.engine = TorchEngine(packed.config, blocks, StageShape(N_SLOTS, CTX, 1), 0, device)
        self.head = TorchHead(packed.config, open_pack(directory / packed.head.filename), 1, device)
        self.embedding = Embedding(open_pack(directory / packed.embedding.filename), packed.config.embedding_scale)

    def logits(self, rows: list[Row], ids: list[int]) -> NDArray[np.float32]:
        return self.head.logits(self.engine.forward(rows, self.embedding.rows(ids)))


@pytest.fixture(scope="module")
def gpu(packs) -> Model:
    return Model(packs, choose_backend("cuda").torch_device)


@pytest.fixture(scope="module")
def cpu(packs) -> Model:
    return Model(packs, CPU)


def steps() -> list[tuple[list[Row], list[int]]]:
    """Prompts, single decoding over a KV length class, decoding of several slots with gaps, chunks beside decoding; each kind again."""
    ids = np.random.default_rng(1).integers(0, 320, CTX).tolist()
    found = [([Row(0, 0, 250, 0)], ids[:250]), ([Row(3, 0, 40, 0)], ids[:40]), ([Row(1, 0, 9, 0)], ids[:9])]
    found += [([Row(0, p, 1, 0)], [ids[p]]) for p in range(250, 262)]
    found += [([Row(3, p, 1, 0), Row(1, p - 31, 1, 0)], [ids[p], ids[p - 31]]) for p in range(40, 46)]
    found += [([Row(3, p, 1, 0)], [ids[p]]) for p in range(46, 50)]
    found.append(([Row(0, 262, 30, 0), Row(3, 50, 1, 0)], [*ids[262:292], ids[50]]))
    found += [([Row(slot, p, 1, 0) for slot, p in ((0, 292 + i), (1, 15 + i), (3, 51 + i))], ids[:3]) for i in range(4)]
    return found


def test_a_gpu_computes_what_the_cpu_does(gpu: Model, cpu: Model, packs) -> None:
    least = LEAST_COSINE if packs[0].config.experts is None else LEAST_SPARSE_COSINE
    for rows, ids in steps():
        found, expected = gpu.logits(rows, ids), cpu.logits(rows, ids)
        cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosine.min() > least, rows


def test_a_graph_gives_what_the_step_gave_that_it_recorded(gpu: Model) -> None:
    gpu.logits([Row(0, 0, 20, 0)], list(range(20)))
    recorded, replayed = (gpu.logits([Row(0, 20, 1, 0)], [7]) for _ in range(2))
    np.testing.assert_array_equal(recorded, replayed)
    assert gpu.engine._steps._graphs


def test_kernels_are_compiled_and_codes_stay_codes(gpu: Model, packs) -> None:
    packed, _ = packs
    assert gpu.engine.compiled
    most = 1.01 if packed.fmt.quantised else 0.51  # fp32 becomes bfloat16
    assert gpu.engine.weight_bytes <= most * sum(ref.n_bytes for ref in packed.blocks)


def test_free_memory_sinks_with_a_stage_and_comes_back(packs) -> None:
    backend = choose_backend("cuda")
    packed, directory = packs
    Model(packs, backend.torch_device)  # what the first use of a device takes stays taken
    backend.release()
    before = backend.free_bytes()
    shape = StageShape(N_SLOTS, 1024 * 64, 1)
    engine = backend.make_engine(packed.config, open_packs(packed, directory, 0, N_BLOCKS), shape, 0)
    assert backend.free_bytes() <= before - engine.kv_bytes
    del engine
    backend.release()
    assert backend.free_bytes() >= before - (64 << 20)
