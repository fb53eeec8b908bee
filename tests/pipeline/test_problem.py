"""What a workload asks every node for, as far as the type of KV decides it."""

from __future__ import annotations

import pytest

from mdi.engine.backend import CPU, MPS, ONNX, TORCH_CPU, Backend
from mdi.model.kv import KvType
from mdi.model.quantise import Quant
from mdi.model.source import Model, resolve
from mdi.node.stage import STAGE_BYTES
from mdi.pipeline.api import StarterOptions
from mdi.pipeline.problem import Workload, worker_cost
from mdi.wire import mdi_pb2 as pb


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model(resolve("demo"))


def test_kv_has_8_bits_unless_the_weights_are_fp32_or_another_type_is_asked_for(demo: Model) -> None:
    kept = {
        (quant, wanted): Workload.of(demo, StarterOptions(quant=quant, kv_type=wanted)).kv_type
        for quant in (Quant.AUTO, Quant.INT4_PLAIN, Quant.INT8, Quant.NONE)
        for wanted in (None, KvType.FP32, KvType.INT8)
    }
    assert {quant for (quant, wanted), kv_type in kept.items() if wanted is None and kv_type is KvType.FP32} == {Quant.NONE}
    assert all(kv_type is wanted for (_, wanted), kv_type in kept.items() if wanted)


def test_each_device_counts_kv_as_it_keeps_it(demo: Model) -> None:
    workload = Workload.of(demo, StarterOptions(kv_type=KvType.INT8))
    values = 2 * demo.config.n_kv_heads * demo.config.head_dim
    found = [workload.kv_bytes_per_token(each) for each in (ONNX, Backend(MPS, "M4", "2"), Backend(TORCH_CPU, None, "2"))]
    assert found == [values, 2 * values, 4 * values]


@pytest.mark.parametrize(("device", "value_bytes"), [("", 1), (CPU, 1), ("cuda:0", 2), (TORCH_CPU, 4)])
def test_a_worker_is_planned_with_the_kv_of_its_own_device(demo: Model, device: str, value_bytes: int) -> None:
    times = pb.LinearTime(overhead_s=0.001, block_s=0.002)
    info = pb.NodeInfo(node_id="w", name="attic", device=device, on_battery=True)
    workload = Workload.of(demo, StarterOptions(kv_type=KvType.INT8))
    cost = worker_cost(workload, info, pb.NodeProfile(memory_offered_bytes=7, decode=times, prefill=times))
    assert cost.kv_bytes_per_token == value_bytes * 2 * demo.config.n_kv_heads * demo.config.head_dim
    assert (cost.name, cost.memory_bytes, cost.on_battery) == ("attic", 7, True)


def test_plans_leave_room_for_what_a_step_expands(demo: Model) -> None:
    fp32, int8 = (Workload.of(demo, StarterOptions(kv_type=each)).model_cost() for each in (KvType.FP32, KvType.INT8))
    values = 2 * demo.config.n_kv_heads * demo.config.head_dim
    assert (fp32.kv_bytes_per_token, int8.kv_bytes_per_token) == (4 * values, values)
    assert fp32.stage_bytes == STAGE_BYTES
    assert int8.stage_bytes == STAGE_BYTES + 2 * 4 * values * int8.ctx  # in fp32, into the kernel and out of it
