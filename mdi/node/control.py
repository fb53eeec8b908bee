"""The control plane on a node: each method checks its request, does one thing, and answers or aborts with a typed error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import grpc

from mdi import __version__
from mdi.engine.backend import Backend
from mdi.errors import MdiError, PeerError
from mdi.model.config import ModelConfig
from mdi.node.callers import caller_id
from mdi.node.dial import Dialler
from mdi.node.links import check_sizes, measure_link
from mdi.node.measure import Measurer
from mdi.node.messages import (
    kv_type,
    link_report,
    node_address,
    pack_list,
    pack_refs,
    stage_spec,
    step_times_messages,
    weight_format,
)
from mdi.node.meter import Totals, between
from mdi.node.packs import PackStore
from mdi.node.speed import speed_of
from mdi.node.stage import LoadedStage
from mdi.node.stages import Stages
from mdi.profile.condition import on_battery
from mdi.profile.device import DeviceInfo
from mdi.profile.memory import backend_available_bytes, backend_total_bytes
from mdi.profile.temperature import temperature_c
from mdi.wire import PROTOCOL
from mdi.wire import mdi_pb2 as pb
from mdi.wire.mdi_pb2_grpc import NodeServicer
from mdi.wire.status import abort

STATUS_INTERVAL_S = 2.0  # a starter learns of a node's memory and heat this often; of a stage that ends, at once


@dataclass(frozen=True, slots=True)
class Me:
    """What this node tells of itself."""

    node_id: str
    name: str
    device: DeviceInfo
    threads: int
    started_s: float  # of the monotonic clock
    backend: Backend


class ControlServicer(NodeServicer):
    def __init__(self, me: Me, stages: Stages, packs: PackStore, dialler: Dialler, measurer: Measurer) -> None:
        self._me = me
        self._stages = stages
        self._packs = packs
        self._dialler = dialler
        self._measurer = measurer

    async def Info(self, request: pb.InfoRequest, context: grpc.aio.ServicerContext) -> pb.NodeInfo:
        me = self._me
        return pb.NodeInfo(
            node_id=me.node_id,
            name=me.name,
            version=__version__,
            protocol=PROTOCOL,
            cpu=me.device.cpu,
            threads=me.threads,
            on_battery=on_battery(),
            memory_total_bytes=backend_total_bytes(me.backend),
            memory_available_bytes=backend_available_bytes(me.backend),
            memory_offered_bytes=self._stages.offered_bytes,
            memory_used_bytes=self._stages.used_bytes,
            stages=[self._stage_info(stage) for stage in self._stages],
            uptime_s=time.monotonic() - me.started_s,
            device=me.backend.device,
            accelerator=me.backend.accelerator or "",
        )

    async def Profile(self, request: pb.ProfileRequest, context: grpc.aio.ServicerContext) -> pb.NodeProfile:
        try:
            config = ModelConfig.from_json(request.config_json)
            times = await self._measurer.blocks(
                config,
                weight_format(request.format),
                ctx=request.ctx,
                chunk_tokens=request.chunk_tokens,
                refresh=request.refresh,
                kv_type=kv_type(request.kv_type),
            )
            device = await self._measurer.device(refresh=request.refresh)
        except MdiError as error:
            await abort(context, error)
        return pb.NodeProfile(
            tflops=device.tflops,
            read_bytes_per_s=device.read_bytes_per_s,
            decode=pb.LinearTime(overhead_s=times.decode.overhead_s, block_s=times.decode.block_s),
            prefill=pb.LinearTime(overhead_s=times.prefill.overhead_s, block_s=times.prefill.block_s),
            chunk_tokens=times.chunk_tokens,
            memory_offered_bytes=self._stages.offered_bytes,
        )

    async def MeasureLink(self, request: pb.MeasureLinkRequest, context: grpc.aio.ServicerContext) -> pb.LinkReport:
        try:
            check_sizes(request.decode_bytes, request.prefill_bytes)
            peer = node_address(request.peer)
            async with self._dialler.open(peer) as channel:
                link = await measure_link(channel, peer.name)
        except MdiError as error:
            await abort(context, error)
        return link_report(link)

    async def MissingPacks(self, request: pb.PackList, context: grpc.aio.ServicerContext) -> pb.PackList:
        try:
            return pack_list(self._packs.missing(pack_refs(request.packs)))
        except MdiError as error:
            await abort(context, error)

    async def PutPack(self, chunks: AsyncIterator[pb.PackChunk], context: grpc.aio.ServicerContext) -> pb.PackRef:
        try:
            first = await anext(aiter(chunks), None)
            if first is None or not first.HasField("pack"):
                raise PeerError("an upload did not say which pack it is")
            (ref,) = pack_refs([first.pack])

            async def data() -> AsyncIterator[bytes]:
                yield first.data
                async for chunk in chunks:
                    yield chunk.data

            await self._packs.receive(ref, data())
        except MdiError as error:
            await abort(context, error)
        return first.pack

    async def LoadStage(
        self, request: pb.LoadStageRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.LoadProgress]:
        try:
            spec = stage_spec(request, caller_id(context), self._me.threads, self._me.backend)
            yield pb.LoadProgress(blocks_loaded=0, bytes=0)
            await self._stages.load(spec)
            yield pb.LoadProgress(blocks_loaded=len(spec.blocks), bytes=spec.memory_bytes)
        except MdiError as error:
            await abort(context, error)

    async def Unload(self, request: pb.UnloadRequest, context: grpc.aio.ServicerContext) -> pb.UnloadReply:
        try:
            return pb.UnloadReply(found=self._stages.unload(request.session, caller_id(context)))
        except MdiError as error:
            await abort(context, error)

    async def Watch(self, request: pb.WatchRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.NodeStatus]:
        try:
            with self._stages.watch(request.session, caller_id(context)) as held:
                told: Totals = {}
                while True:
                    before, told = told, held.stage.meter.totals
                    yield pb.NodeStatus(
                        memory_available_bytes=backend_available_bytes(self._me.backend),
                        steps=held.stage.steps,
                        busy_s=held.stage.busy_s,
                        temperature_c=temperature_c() or 0.0,
                        step_times=step_times_messages(between(before, told)),
                    )
                    with suppress(TimeoutError):
                        async with asyncio.timeout(STATUS_INTERVAL_S):
                            await held.wait_ended()
        except MdiError as error:
            await abort(context, error)

    def _stage_info(self, stage: LoadedStage) -> pb.StageInfo:
        spec = stage.spec
        return pb.StageInfo(
            session=spec.target.session,
            starter_id=spec.starter_id,
            model=spec.model,
            start=spec.blocks.start,
            stop=spec.blocks.stop,
            epoch=spec.target.epoch,
            bytes=spec.memory_bytes,
            steps=stage.steps,
            speed=speed_of(stage, self._measurer.known_blocks(spec)) or 0.0,
        )
