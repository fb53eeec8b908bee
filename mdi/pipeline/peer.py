"""One worker as the starter sees it: its control plane with deadlines, and errors that name it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import grpc

from mdi.errors import LinkError, WrongVersion
from mdi.model.config import ModelConfig
from mdi.model.kv import KvType
from mdi.model.packs import PackRef, chunks
from mdi.model.quantise import WeightFormat
from mdi.node.dial import Dialler, NodeAddress
from mdi.node.links import DECODE_BYTES, PREFILL_BYTES, Link, measure_link
from mdi.node.messages import load_request, pack_list, pack_refs, peer_address_message, reported_link, weight_format_message
from mdi.node.stage import StageSpec
from mdi.wire import PROTOCOL
from mdi.wire import mdi_pb2 as pb
from mdi.wire.mdi_pb2_grpc import NodeStub
from mdi.wire.status import from_rpc_error

CALL_TIMEOUT_S = 10.0
PROFILE_TIMEOUT_S = 120.0  # a Pi 4 measures a 7B block for about half a minute
LINK_TIMEOUT_S = 30.0
LOAD_TIMEOUT_S = 600.0  # 4 GB of weights from a slow card
UPLOAD_SILENCE_S = 60.0  # no piece of a pack taken for so long is a dead link

T = TypeVar("T")


class Peer:
    """An open channel to a node of this cluster."""

    def __init__(self, address: NodeAddress, channel: grpc.aio.Channel) -> None:
        self.address = address
        self._channel = channel
        self._node = NodeStub(channel)

    async def info(self) -> pb.NodeInfo:
        """Raises WrongVersion for a node whose protocol is another."""
        info: pb.NodeInfo = await self._call(self._node.Info(pb.InfoRequest(), timeout=CALL_TIMEOUT_S))
        if info.protocol != PROTOCOL:
            raise WrongVersion(
                f"{info.name} ({self.address.name}) speaks protocol {info.protocol}, this device {PROTOCOL}",
                hint=f"install the same version of MDI on both: {info.version} is there",
            )
        return info

    async def profile(
        self, config: ModelConfig, fmt: WeightFormat, *, ctx: int, chunk_tokens: int, kv_type: KvType, refresh: bool
    ) -> pb.NodeProfile:
        request = pb.ProfileRequest(
            config_json=config.to_json(),
            format=weight_format_message(fmt),
            ctx=ctx,
            chunk_tokens=chunk_tokens,
            refresh=refresh,
            kv_type=kv_type,
        )
        return await self._call(self._node.Profile(request, timeout=PROFILE_TIMEOUT_S))

    async def link_from_here(self) -> Link:
        return await measure_link(self._channel, self.address.name)

    async def link_to(self, other: NodeAddress) -> Link:
        """The link between this node and another one, measured between the two."""
        request = pb.MeasureLinkRequest(
            peer=peer_address_message(other), decode_bytes=DECODE_BYTES, prefill_bytes=PREFILL_BYTES
        )
        return reported_link(await self._call(self._node.MeasureLink(request, timeout=LINK_TIMEOUT_S)))

    async def missing(self, refs: tuple[PackRef, ...]) -> tuple[PackRef, ...]:
        reply = await self._call(self._node.MissingPacks(pack_list(refs), timeout=CALL_TIMEOUT_S))
        return pack_refs(reply.packs)

    async def upload(self, ref: PackRef, path: Path, on_bytes: Callable[[int], None]) -> None:
        """Sends a pack from this disk; `on_bytes` hears of every piece that was taken."""
        call = self._node.PutPack()
        try:
            first: pb.PackRef | None = pb.PackRef(sha256=ref.sha256, bytes=ref.n_bytes)
            for piece in chunks(path):
                async with asyncio.timeout(UPLOAD_SILENCE_S):
                    await call.write(pb.PackChunk(pack=first, data=piece))
                on_bytes(len(piece))
                first = None
            await call.done_writing()
            async with asyncio.timeout(UPLOAD_SILENCE_S):
                await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address.name) from error
        except asyncio.InvalidStateError:  # the node ended the call before we did: its status says why
            await self._call(call)
            raise LinkError(f"{self.address.name} ended an upload") from None
        except TimeoutError:
            raise LinkError(
                f"{self.address.name} took no data for {UPLOAD_SILENCE_S:.0f} s", hint="look at its link and its disk"
            ) from None
        finally:
            call.cancel()

    async def load(self, spec: StageSpec) -> None:
        call = self._node.LoadStage(load_request(spec), timeout=LOAD_TIMEOUT_S)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address.name) from error

    async def unload(self, session: str) -> None:
        await self._call(self._node.Unload(pb.UnloadRequest(session=session), timeout=CALL_TIMEOUT_S))

    async def watch(self, session: str, on_status: Callable[[pb.NodeStatus], None]) -> None:
        """Holds the session's lease until cancelled. Raises when the node fails."""
        try:
            async for status in self._node.Watch(pb.WatchRequest(session=session)):
                on_status(status)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address.name) from error
        raise LinkError(f"{self.address.name} is shutting down", hint="run again: the others take over its blocks")

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address.name) from error


@asynccontextmanager
async def connect(dialler: Dialler, address: NodeAddress) -> AsyncIterator[Peer]:
    async with dialler.open(address) as channel:
        yield Peer(address, channel)
