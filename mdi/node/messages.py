"""Between protobuf messages and our own types. What comes in is checked here, before anything is done with it."""

from __future__ import annotations

from collections.abc import Iterable

from mdi.cluster import peers
from mdi.cluster.identity import is_node_id
from mdi.engine.backend import Backend
from mdi.engine.protocol import StageShape
from mdi.errors import PeerError, UserError
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.packs import PackRef
from mdi.model.quantise import WeightFormat
from mdi.node.dial import NodeAddress
from mdi.node.links import Link, LinkTimes
from mdi.node.meter import MAX_KINDS
from mdi.node.stage import StageSpec
from mdi.plan.live import StepTimes
from mdi.plan.plan import BlockRange
from mdi.wire import mdi_pb2 as pb
from mdi.wire.ring import RingTarget

MAX_BLOCKS_PER_REQUEST = 1024  # as many as any model may have (mdi.model.config)
MAX_ADDRESSES = 16
MAX_NAME_CHARS = 80


def pack_refs(packs: Iterable[pb.PackRef]) -> tuple[PackRef, ...]:
    refs = tuple(PackRef(pack.sha256, pack.bytes) for pack in packs)
    if len(refs) > MAX_BLOCKS_PER_REQUEST + 2:
        raise PeerError(f"{len(refs)} packs in one request, more than {MAX_BLOCKS_PER_REQUEST + 2}")
    return refs


def pack_list(refs: Iterable[PackRef]) -> pb.PackList:
    return pb.PackList(packs=[pb.PackRef(sha256=ref.sha256, bytes=ref.n_bytes) for ref in refs])


def weight_format(message: pb.WeightFormat) -> WeightFormat:
    return WeightFormat(message.bits, message.block)


def weight_format_message(fmt: WeightFormat) -> pb.WeightFormat:
    return pb.WeightFormat(bits=fmt.bits, block=fmt.block)


def kv_type(name: str) -> KvType:
    """What a starter asks for; one that knows no types of KV asks for fp32. Raises PeerError for a type that cannot be asked for."""
    if name not in ("", KvType.FP32, KvType.INT8):
        raise PeerError(
            f"KV of the type {name[:40]!r} is not known here", hint="install the same version of MDI on all devices"
        )
    return KvType(name or KvType.FP32)


def node_address(message: pb.PeerAddress) -> NodeAddress:
    if (
        not 1 <= len(message.addresses) <= MAX_ADDRESSES
        or len(message.name) > MAX_NAME_CHARS
        or not is_node_id(message.node_id)
    ):
        raise PeerError("the address of a node is not usable")
    try:
        for address in message.addresses:  # not what gRPC also takes for one, such as unix:/path
            peers.PeerAddress(address, message.port)
    except UserError as error:
        raise PeerError(f"the address of a node is not usable: {error}") from error
    return NodeAddress(message.node_id, message.name, tuple(message.addresses), message.port)


def peer_address_message(node: NodeAddress) -> pb.PeerAddress:
    return pb.PeerAddress(node_id=node.node_id, name=node.name, addresses=node.addresses, port=node.port)


def link_report(link: Link) -> pb.LinkReport:
    return pb.LinkReport(
        round_trip_s=link.there.round_trip_s,
        decode_s=link.there.decode_s,
        prefill_s=link.there.prefill_s,
        back_decode_s=link.back.decode_s,
        back_prefill_s=link.back.prefill_s,
    )


def reported_link(report: pb.LinkReport) -> Link:
    """The inverse of `link_report`. Raises PeerError for what are no times."""
    return Link(
        LinkTimes(report.round_trip_s, report.decode_s, report.prefill_s),
        LinkTimes(report.round_trip_s, report.back_decode_s, report.back_prefill_s),
    )


def step_times_messages(times: Iterable[StepTimes]) -> list[pb.StepTimes]:
    return [
        pb.StepTimes(rows=each.rows, steps=each.steps, context_tokens=each.context_tokens, seconds=each.seconds)
        for each in times
    ]


def reported_steps(status: pb.NodeStatus) -> list[StepTimes]:
    """The inverse of `step_times_messages`. Raises PeerError for what are no times, or more kinds than a meter tells apart."""
    if len(status.step_times) > MAX_KINDS:
        raise PeerError(f"a status tells of {len(status.step_times)} kinds of steps, more than {MAX_KINDS}")
    return [StepTimes(each.rows, each.steps, each.context_tokens, each.seconds) for each in status.step_times]


def stage_spec(request: pb.LoadStageRequest, starter_id: str, threads: int, backend: Backend) -> StageSpec:
    """As this node will hold it. Raises a typed error naming what is wrong with the request."""
    if request.start > request.stop:
        raise PeerError(f"blocks {request.start} to {request.stop} are no stage")
    return StageSpec(
        target=RingTarget(request.session, request.epoch),
        starter_id=starter_id,
        model=request.model[:MAX_NAME_CHARS],
        config=ModelConfig.from_json(request.config_json),
        fmt=weight_format(request.format),
        blocks=BlockRange(request.start, request.stop),
        packs=pack_refs(request.packs),
        shape=StageShape(request.n_slots, request.ctx, threads, backend.kv_type(kv_type(request.kv_type))),
        max_tokens=request.max_tokens,
        next=node_address(request.next) if request.HasField("next") else None,
    )


def load_request(spec: StageSpec) -> pb.LoadStageRequest:
    """The inverse of `stage_spec`, on the starter."""
    return pb.LoadStageRequest(
        session=spec.target.session,
        epoch=spec.target.epoch,
        model=spec.model,
        config_json=spec.config.to_json(),
        format=weight_format_message(spec.fmt),
        start=spec.blocks.start,
        stop=spec.blocks.stop,
        packs=pack_list(spec.packs).packs,
        n_slots=spec.shape.n_slots,
        ctx=spec.shape.ctx,
        max_tokens=spec.max_tokens,
        kv_type=spec.shape.kv_type,
        next=None if spec.next is None else peer_address_message(spec.next),
    )
