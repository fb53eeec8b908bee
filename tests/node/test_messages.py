"""Requests from the wire: what comes back is what was sent, and what cannot be is the sender's fault, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mdi.engine.backend import MPS, ONNX, TORCH_CPU, Backend
from mdi.errors import InternalError, MdiError, PeerError
from mdi.model.kv import KvType
from mdi.node.dial import NodeAddress
from mdi.node.messages import kv_type, load_request, node_address, peer_address_message, stage_spec
from mdi.wire import mdi_pb2 as pb
from tests.node.test_stage import SPEC

NEXT = NodeAddress("c" * 32, "attic", ("10.0.0.2", "fe80::1%eth0", "attic.lan"), 52700)


def test_a_stage_survives_the_wire() -> None:
    for kept in (KvType.FP32, KvType.INT8):
        spec = replace(SPEC, next=NEXT, shape=replace(SPEC.shape, kv_type=kept))
        assert stage_spec(load_request(spec), spec.starter_id, spec.shape.threads, ONNX) == spec


def test_a_starter_that_knows_no_types_of_kv_gets_fp32() -> None:
    old = load_request(replace(SPEC, shape=replace(SPEC.shape, kv_type=KvType.INT8)))
    old.ClearField("kv_type")
    assert stage_spec(old, SPEC.starter_id, 1, ONNX).shape.kv_type is KvType.FP32
    assert kv_type(pb.ProfileRequest(ctx=64).kv_type) is KvType.FP32


def test_each_node_keeps_kv_in_a_type_that_its_engine_has() -> None:
    """Whatever was asked for: torch keeps it as it computes."""
    request = load_request(replace(SPEC, shape=replace(SPEC.shape, kv_type=KvType.INT8)))
    kept = {
        device: stage_spec(request, SPEC.starter_id, 1, Backend(device, None, "torch")).shape.kv_type
        for device in (MPS, TORCH_CPU)
    }
    assert kept == {MPS: KvType.HALF, TORCH_CPU: KvType.FP32}


@pytest.mark.parametrize("name", ["half", "fp16", "INT8", "int8 ", "x" * 1000])
def test_a_type_of_kv_that_cannot_be_asked_for_is_refused(name: str) -> None:
    with pytest.raises(PeerError, match="not known here") as refused:
        kv_type(name)
    assert len(str(refused.value)) < 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": 2, "stop": 1},
        {"start": 1, "stop": 1},
        {"stop": 99},
        {"max_tokens": 0},
        {"max_tokens": 1 << 20},
        {"n_slots": 0},
        {"ctx": 0},
        {"ctx": 1 << 20},
        {"session": ""},
        {"config_json": "{"},
        {"format": pb.WeightFormat(bits=3)},
        {"packs": []},
        {"kv_type": "half"},
    ],
)
def test_a_stage_that_cannot_be_is_refused_as_the_senders_fault(wrong: dict[str, object]) -> None:
    request = load_request(SPEC)
    for name, value in wrong.items():
        request.ClearField(name)  # type: ignore[arg-type]
        request.MergeFrom(pb.LoadStageRequest(**{name: value}))  # type: ignore[arg-type]
    with pytest.raises(MdiError) as refused:
        stage_spec(request, SPEC.starter_id, 1, ONNX)
    assert not isinstance(refused.value, InternalError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"node_id": "attic"},
        {"addresses": ()},
        {"addresses": ("10.0.0.2",) * 17},
        {"addresses": ("unix:/run/other.sock",)},
        {"addresses": ("dns:///elsewhere",)},
        {"addresses": ("",)},
        {"port": 0},
        {"port": 65536},
        {"name": "n" * 81},
    ],
)
def test_an_address_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(PeerError, match="not usable"):
        node_address(peer_address_message(replace(NEXT, **wrong)))  # type: ignore[arg-type]
