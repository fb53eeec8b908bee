"""Compiled kernels: traced once for all blocks and positions, and not trusted before they were compared."""

from __future__ import annotations

import gc
import logging
import shutil
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from mdi.engine.torch_kernels import EAGER, Functions, Kernels, compiled_kernels
from mdi.engine.torch_stage import TorchStage
from mdi.engine.torch_weights import CodedPart, dequantise, linear
from mdi.model.checkpoint import Checkpoint
from mdi.model.packed import PackedModel, prepare
from mdi.model.quantise import Quant, WeightFormat
from mdi.wire.frame import Row
from tests.checkpoints import make_checkpoint
from tests.engine.torch_stages import TorchStages

N_TOKENS = 30


@pytest.fixture(scope="module", params=[Quant.NONE, Quant.INT4])
def packs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedModel, Path]:
    directory = tmp_path_factory.mktemp("model")
    checkpoint = Checkpoint.open(make_checkpoint(directory / "m"))
    return prepare(checkpoint, WeightFormat.of(request.param, 32), directory / "packs"), directory / "packs"


def ids() -> list[int]:
    return np.random.default_rng(1).integers(0, 320, N_TOKENS).tolist()


def logits(stages: TorchStages) -> np.ndarray:
    found = [stages.logits([Row(0, 0, 9, 0)], ids()[:9]), stages.logits([Row(1, 0, 4, 0)], ids()[:4])]
    found += [stages.logits([Row(0, position, 1, 0)], [ids()[position]]) for position in range(9, 15)]
    found += [stages.logits([Row(1, p, 1, 0), Row(0, p + 11, 1, 0)], [ids()[p], ids()[p + 11]]) for p in range(4, 10)]
    return np.concatenate(found)


def test_traced_kernels_compute_what_plain_ones_do(packs) -> None:
    plain = TorchStages(*packs, (3,), n_slots=2)
    traced = TorchStages(*packs, (3,), n_slots=2, kernels=compiled_kernels("aot_eager"))
    assert traced.engines[0].compiled
    assert not plain.engines[0].compiled
    np.testing.assert_allclose(logits(traced), logits(plain), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "llama-biases", "mixtral", "phi3-partial", "qwen3moe", "smollm3-window"])
def test_traced_kernels_compute_every_family(kind: str, tmp_path: Path) -> None:
    packed = prepare(
        Checkpoint.open(make_checkpoint(tmp_path / "m", kind)), WeightFormat.of(Quant.INT4, 32), tmp_path / "packs"
    )
    traced = TorchStages(packed, tmp_path / "packs", (3,), n_slots=2, kernels=compiled_kernels("aot_eager"))
    assert traced.engines[0].compiled
    plain = TorchStages(packed, tmp_path / "packs", (3,), n_slots=2)
    np.testing.assert_allclose(logits(traced), logits(plain), atol=1e-3, rtol=0)


def test_functions_are_compiled_while_the_stage_loads_and_never_after(packs) -> None:
    """Two numbers of rows, each with a part before and a part after attention: four compilations for any number of blocks."""
    torch._dynamo.reset()
    counter = CompileCounter()

    def compiled(function: object) -> object:
        return torch.compile(function, fullgraph=True, dynamic=False, backend=counter)

    few = Functions(linear, compiled(EAGER.many.before), compiled(EAGER.many.after), None)
    stages = TorchStages(*packs, (3,), n_slots=2, kernels=Kernels(few, EAGER.many))
    assert counter.frame_count == 4
    logits(stages)
    assert counter.frame_count == 4


def test_a_compiler_that_fails_is_told_and_done_without(packs, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("no gcc\nhere")

    kernels = Kernels(Functions(broken, broken, broken, None), EAGER.many)
    with caplog.at_level(logging.WARNING):
        stages = TorchStages(*packs, (3,), n_slots=2, kernels=kernels)
    assert not stages.engines[0].compiled
    assert "no gcc here" in caplog.text
    np.testing.assert_array_equal(logits(stages), logits(TorchStages(*packs, (3,), n_slots=2)))


def test_kernels_that_compute_something_else_are_not_used(packs, caplog: pytest.LogCaptureFixture) -> None:
    def half(*arguments: object) -> Tensor:
        x = arguments[0]
        return x + (EAGER.many.after(*arguments) - x).flip(-1)

    few = replace(EAGER.many, after=half)
    with caplog.at_level(logging.WARNING):
        stages = TorchStages(*packs, (3,), kernels=Kernels(few, EAGER.many))
    assert not stages.engines[0].compiled
    assert "something else" in caplog.text


def test_a_dequantising_kernel_is_compared_too(packs, caplog: pytest.LogCaptureFixture) -> None:
    def turned_over(part: CodedPart, dtype: torch.dtype) -> Tensor:
        return dequantise(part, dtype).flip(0)

    packed, _ = packs
    with caplog.at_level(logging.WARNING):
        stages = TorchStages(*packs, (3,), kernels=Kernels(EAGER.many, replace(EAGER.many, expand=turned_over)))
    assert stages.engines[0].compiled != packed.fmt.quantised
    assert ("something else" in caplog.text) == packed.fmt.quantised


def test_a_dropped_engine_is_freed_at_once(packs) -> None:
    """Without waiting for the garbage collector: the next stage may need the memory."""
    stages = TorchStages(*packs, (3,))
    logits_of_one = stages.logits([Row(0, 0, 3, 0)], ids()[:3])
    gc.collect()
    gc.disable()
    try:
        left = weakref.ref(stages.engines[0]._stage)
        del stages
        assert left() is None
    finally:
        gc.enable()
    assert np.isfinite(logits_of_one).all()


def test_few_rows_take_the_compiled_kernels_and_many_the_plain_ones(packs) -> None:
    calls: list[int] = []

    def counted(x: Tensor, *rest: object) -> Tensor:
        calls.append(len(x))
        return EAGER.many.after(x, *rest)

    kernels = Kernels(replace(EAGER.many, after=counted), EAGER.many)
    stages = TorchStages(*packs, (3,), n_slots=20, kernels=kernels)
    assert sorted(set(calls)) == [1, 2, 4, 8]
    for n_rows, counts in ((1, 3), (5, 3), (8, 3), (9, 0), (20, 0)):
        calls.clear()
        stages.logits([Row(slot, 0, 1, 0) for slot in range(n_rows)], ids()[:1] * n_rows)
        assert len(calls) == counts
    calls.clear()
    stages.logits([Row(0, 0, 5, 0)], ids()[:5])
    assert not calls


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++")
def test_the_sum_over_codes_compiles_to_the_same_product() -> None:
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (64, 4, 16), dtype=torch.uint8, generator=rng)
    part = CodedPart(codes, torch.rand((64, 4), generator=rng), None, None, 4, 128)
    x = torch.randn((2, 128), generator=rng)
    few = compiled_kernels().few
    assert few is not None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's compiler warns of its own imports
        found = few.linear(x, (part,), torch.float32, None)
    torch.testing.assert_close(found, linear(x, (part,), torch.float32, dequantise))


def test_a_long_conversation_passes_through_all_kv_lengths(tmp_path: Path) -> None:
    directory = tmp_path / "packs"
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m", max_position_embeddings=1024))
    packed = prepare(checkpoint, WeightFormat.of(Quant.NONE), directory)
    tokens = np.random.default_rng(2).integers(0, 320, 600).tolist()
    expected = TorchStages(packed, directory, (3,), ctx=600).logits([Row(0, 0, 600, 0)], tokens)
    stages = TorchStages(packed, directory, (3,), ctx=600)
    position, found = 0, {}
    for chunk, decoded in ((250, 12), (245, 12), (75, 6)):
        stages.logits([Row(0, position, chunk, 0)], tokens[position : position + chunk])
        position += chunk
        for _ in range(decoded):
            found[position] = stages.logits([Row(0, position, 1, 0)], [tokens[position]])[0]
            position += 1
    assert position == 600
    np.testing.assert_allclose(np.stack(list(found.values())), expected[list(found)], atol=1e-3, rtol=0)


def test_kv_lengths_are_few_and_reach_the_whole_context(packs) -> None:
    stage: TorchStage = TorchStages(*packs, (3,), ctx=200).engines[0]._stage
    assert stage.capacity == 256
    assert [stage.length_class(total) for total in (1, 200)] == [256, 256]
    long: TorchStage = TorchStages(*packs, (3,), ctx=5000).engines[0]._stage
    assert {long.length_class(total) for total in range(1, 5001)} == {256, 512, 1024, 2048, 4096, long.capacity}
    assert all(long.length_class(total) >= total and long.chunk_length(total) >= total for total in range(1, 5001))
