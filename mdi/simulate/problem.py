"""A cluster of profiles and a model as the planner's `Problem`: times from rooflines instead of measurements.

    block, decode     weights that a token reads / read speed
    block, chunk      the larger of that and  operations of the chunk / arithmetic speed
    head              as one more block of its own size
    hop               both ends' latency and software + frame / the slower end's speed, half of it on a shared medium

docs/planning.md says what these leave out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mdi.engine.backend import ONNX
from mdi.model.config import ModelConfig
from mdi.model.known import known_config
from mdi.model.kv import KvType
from mdi.model.layout import check_format, default_block
from mdi.model.packed import decode_bytes, packed_bytes
from mdi.model.quantise import Quant, WeightFormat
from mdi.node.stage import RESIDENT_FACTOR
from mdi.pipeline.problem import Workload, chosen_kv_type
from mdi.plan.costs import LinkTable, Load, NodeCost, Problem, StageTime, StarterCost
from mdi.profile.attention import block_operations
from mdi.profile.memory import HEADROOM_BYTES
from mdi.simulate.profiles import Cluster, Device, Node

HOP_SOFTWARE_S = (
    0.4e-3  # half of the 0.8 ms by which send to reply of a first ring took longer than the computation (loopback, x86-64)
)
GIB = 1 << 30


def known_workload(
    name: str, quant: Quant, block: int | None, ctx: int | None, n_slots: int, kv_type: KvType | None = None
) -> Workload:
    """A model of the table of known shapes, as it would be deployed. Raises ModelError for a name that is not in it."""
    config = known_config(name)
    fmt = WeightFormat.of(quant, block or default_block(config))
    check_format(config, fmt)
    return Workload.of_shape(config, fmt, ctx, n_slots, packed_bytes(config, fmt), chosen_kv_type(quant, kv_type))


def cluster_problem(cluster: Cluster, workload: Workload, *, load: Load, prompt_tokens: int) -> Problem:
    """What the planner would be told if these devices were here and nothing else ran on them."""
    devices = {node.device.key: _device_cost(node.device, workload) for node in cluster.nodes}
    nodes = [replace(devices[node.device.key], node_id=node.name, name=node.name) for node in cluster.nodes]
    starter = cluster.nodes[0].device
    head_s = starter.step_ms.value / 1000 + _read_s(starter, workload.head_bytes)
    return Problem(
        replace(workload.model_cost(), prompt_tokens=prompt_tokens),
        tuple(nodes),
        StarterCost(head_s, head_s, int(RESIDENT_FACTOR * workload.head_bytes)),
        _links(cluster.nodes, workload),
        load,
    )


def _device_cost(device: Device, workload: Workload) -> NodeCost:
    decode, prefill = _block_times(device, workload)
    offered_bytes = _offered_bytes(device)
    return workload.node_cost(device.key, device.title, offered_bytes, decode, prefill, on_battery=device.battery, backend=ONNX)


def _offered_bytes(device: Device) -> int:
    return max(0, int((device.memory_gib.value - device.system_gib.value) * GIB) - HEADROOM_BYTES)


def _read_s(device: Device, n_bytes: float) -> float:
    return n_bytes / (device.read_gb_per_s.value * 1e9)


def _block_times(device: Device, workload: Workload) -> tuple[StageTime, StageTime]:
    config, overhead_s = workload.config, device.step_ms.value / 1000
    decode_s = _read_s(device, decode_bytes(config, workload.fmt))
    chunk_s = workload.chunk_tokens * block_operations(config) / (device.gflops.value * 1e9)
    return StageTime(overhead_s, decode_s), StageTime(overhead_s, max(chunk_s, _read_s(device, _chunk_bytes(config, workload))))


def _chunk_bytes(config: ModelConfig, workload: Workload) -> float:
    """A chunk reads every expert that any of its tokens chose: of a few dozen tokens, nearly all."""
    return packed_bytes(config, workload.fmt)[0] if config.experts is not None else decode_bytes(config, workload.fmt)


def _links(nodes: tuple[Node, ...], workload: Workload) -> LinkTable:
    latency_s = np.array([node.link.latency_ms.value / 1000 for node in nodes])
    bytes_per_s = np.array([node.link.mbit_per_s.value * 1e6 / 8 for node in nodes])
    media = [node.link.key if node.link.shared else f"own {i}" for i, node in enumerate(nodes)]
    same = np.array(media)[:, None] == np.array(media)[None, :]
    speed = np.minimum(bytes_per_s[:, None], bytes_per_s[None, :]) / np.where(same, 2, 1)
    fixed_s = HOP_SOFTWARE_S + latency_s[:, None] + latency_s[None, :]
    decode_s, prefill_s = (fixed_s + n_bytes / speed for n_bytes in (workload.decode_bytes, workload.prefill_bytes))
    return LinkTable(tuple(node.name for node in nodes), decode_s, prefill_s)
