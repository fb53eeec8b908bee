"""Real servers and clients over mutual TLS on loopback: who is let in, what passes, and how a call ends."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mdi.errors import FrameError, LinkError, MdiError, WrongCluster
from mdi.wire.channel import MAX_MESSAGE_BYTES, new_server, open_channel, peer_node_id, server_credentials, target
from mdi.wire.frame import Frame, FrameLimits, Row, decode, encode
from mdi.wire.ring import Flow, RingTarget, collect, handlers, target_of
from mdi.wire.status import abort, from_rpc_error

DEADLINE_S = 60
LIMITS = FrameLimits(d_model=8, max_tokens=16, n_slots=2, ctx=32, dtype="f32")
TARGET = RingTarget("session", 7)


@dataclass(frozen=True)
class Pems:
    ca_pem: bytes
    certificate_pem: bytes
    private_key_pem: bytes


class Authority:
    """A cluster: a CA that issues a certificate to each node."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster")])
        self.certificate = self.sign(self.name, self.key, x509.BasicConstraints(ca=True, path_length=0))

    def sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=False)
        builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, *names: str) -> Pems:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        certificate = self.sign(subject, key, x509.SubjectAlternativeName([x509.DNSName(name) for name in names]))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Pems(self.certificate.public_bytes(Encoding.PEM), certificate.public_bytes(Encoding.PEM), private)


@dataclass
class Stage:
    """The last stage of a ring of one: doubles what it gets."""

    results: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(8))
    callers: list[str] = field(default_factory=list)

    async def on_flow(self, frames: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        try:
            self.callers.append(peer_node_id(context))
            assert target_of(context) == TARGET
            async for data in frames:
                frame = decode(data, LIMITS)
                await self.results.put(encode(frame.emitted(frame.hidden * 2)))
        except (FrameError, WrongCluster) as error:
            await abort(context, error)

    async def on_collect(self, _: bytes, context: grpc.aio.ServicerContext) -> None:
        try:
            target_of(context)
        except FrameError as error:
            await abort(context, error)
        while True:
            await context.write(await self.results.get())


Serve = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
def cluster() -> Authority:
    return Authority()


@pytest.fixture
async def stage() -> Stage:
    return Stage()


@pytest.fixture
async def serve(stage: Stage) -> AsyncIterator[Serve]:
    servers = []

    async def start(pems: Pems, host: str = "127.0.0.1") -> str:
        server = new_server([handlers(stage.on_flow, stage.on_collect)])
        port = server.add_secure_port(target(host, 0), server_credentials(pems))
        servers.append(server)
        await server.start()
        return target(host, port)

    yield start
    for server in servers:
        await server.stop(None)


def a_frame() -> Frame:
    hidden = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    return Frame(7, 0, (Row(0, 0, 4, 1), Row(1, 9, 1, 1)), (), hidden)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_a_frame_goes_round(cluster: Authority, stage: Stage, serve: Serve, host: str) -> None:
    address = await serve(cluster.issue("a.node.mdi"), host)
    async with asyncio.timeout(DEADLINE_S), open_channel(address, cluster.issue("b.node.mdi"), "a") as channel:
        results, frames = collect(channel, TARGET), Flow(channel, TARGET, "pi")
        for _ in range(3):
            await frames.send(encode(a_frame()))
            back = decode(await results.read(), LIMITS, check_finite=True)
            assert (back.hidden == a_frame().hidden[[3, 4]] * 2).all()
        await frames.close()
        results.cancel()
    assert stage.callers == ["b"]


async def fails(channel: grpc.aio.Channel) -> MdiError:
    """What opening a Flow ends with."""
    async with asyncio.timeout(DEADLINE_S), channel:
        error = await Flow(channel, TARGET, "pi").ended
        assert error is not None
        return from_rpc_error(error, "pi")


async def test_a_node_of_another_cluster_is_refused(cluster: Authority, stage: Stage, serve: Serve) -> None:
    address = await serve(cluster.issue("a.node.mdi"))
    stranger = Authority().issue("b.node.mdi")
    assert isinstance(await fails(open_channel(address, stranger, "a")), LinkError)
    # It trusts our CA, yet its own certificate is of another one.
    impostor = Pems(cluster.issue("b.node.mdi").ca_pem, stranger.certificate_pem, stranger.private_key_pem)
    assert isinstance(await fails(open_channel(address, impostor, "a")), LinkError)
    assert stage.callers == []


async def test_a_client_without_a_certificate_is_refused(cluster: Authority, stage: Stage, serve: Serve) -> None:
    address = await serve(cluster.issue("a.node.mdi"))
    nobody = grpc.ssl_channel_credentials(cluster.issue("b.node.mdi").ca_pem)
    options = (("grpc.ssl_target_name_override", "a.node.mdi"),)
    assert isinstance(await fails(grpc.aio.secure_channel(address, nobody, options)), LinkError)
    assert isinstance(await fails(grpc.aio.insecure_channel(address)), LinkError)
    assert stage.callers == []


async def test_another_node_at_the_address_is_refused(cluster: Authority, stage: Stage, serve: Serve) -> None:
    address = await serve(cluster.issue("c.node.mdi"))
    assert isinstance(await fails(open_channel(address, cluster.issue("b.node.mdi"), "a")), LinkError)
    assert stage.callers == []


@pytest.mark.parametrize("names", [("other.example",), ("b.node.mdi", "c.node.mdi")])
async def test_a_certificate_names_exactly_one_node(cluster: Authority, serve: Serve, names: tuple[str, ...]) -> None:
    address = await serve(cluster.issue("a.node.mdi"))
    assert isinstance(await fails(open_channel(address, cluster.issue(*names), "a")), WrongCluster)


async def flood(frames: Flow, data: bytes) -> None:
    while True:
        await frames.send(data)


async def test_a_refused_frame_ends_the_flow_with_its_reason(cluster: Authority, serve: Serve) -> None:
    """However the refusal and the writes that follow fall in time, as many sizes and repetitions let them."""
    address = await serve(cluster.issue("a.node.mdi"))
    data = bytearray(encode(a_frame()))
    data[-1] ^= 1
    async with asyncio.timeout(DEADLINE_S), open_channel(address, cluster.issue("b.node.mdi"), "a") as channel:
        for extra in (b"", bytes(100_000)) * 10:
            frames = Flow(channel, TARGET, "pi")
            await frames.send(bytes(data))
            with pytest.raises(FrameError, match="crc32c") as caught:
                await flood(frames, bytes(data) + extra)
            assert caught.value.hint
            with pytest.raises(FrameError, match="crc32c"):
                await frames.send(bytes(data))
            with pytest.raises(FrameError, match="crc32c"):
                await frames.close()


async def test_a_message_over_the_limit_ends_only_its_own_call(cluster: Authority, serve: Serve) -> None:
    address = await serve(cluster.issue("a.node.mdi"))
    pems = cluster.issue("b.node.mdi")
    tls = grpc.ssl_channel_credentials(pems.ca_pem, pems.private_key_pem, pems.certificate_pem)
    unbounded = (("grpc.max_send_message_length", -1), ("grpc.ssl_target_name_override", "a.node.mdi"))
    async with asyncio.timeout(DEADLINE_S), grpc.aio.secure_channel(address, tls, unbounded) as channel:
        results, frames, giant = collect(channel, TARGET), Flow(channel, TARGET, "pi"), Flow(channel, TARGET, "pi")
        await giant.send(bytes(MAX_MESSAGE_BYTES + 1))
        with pytest.raises(FrameError, match="RESOURCE_EXHAUSTED"):
            await giant.close()
        await frames.send(encode(a_frame()))
        assert decode(await results.read(), LIMITS).step == 0
        await frames.close()
        results.cancel()


async def test_a_flow_that_the_peer_ended_well_takes_no_more(cluster: Authority, serve: Serve, stage: Stage) -> None:
    async def leave(frames: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        pass

    stage.on_flow = leave  # type: ignore[method-assign]
    address = await serve(cluster.issue("a.node.mdi"))
    async with asyncio.timeout(DEADLINE_S), open_channel(address, cluster.issue("b.node.mdi"), "a") as channel:
        frames = Flow(channel, TARGET, "pi")
        assert await frames.ended is None
        with pytest.raises(LinkError, match="pi ended"):
            await frames.send(b"")


async def test_a_call_that_does_not_say_its_stage_is_refused(cluster: Authority, serve: Serve) -> None:
    address = await serve(cluster.issue("a.node.mdi"))
    async with asyncio.timeout(DEADLINE_S), open_channel(address, cluster.issue("b.node.mdi"), "a") as channel:
        for metadata in (
            (),
            (("mdi-ring-bin", b"\xc1"),),
            (("mdi-ring-bin", b"\x92\xa0\x01"),),
            (("mdi-ring-bin", b"\x92\xa1s\xc3"),),
        ):
            call = channel.unary_stream("/mdi.Ring/Collect")(b"", metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert isinstance(from_rpc_error(caught.value, "pi"), FrameError)


async def test_two_nodes_cannot_share_a_port(cluster: Authority, serve: Serve) -> None:
    address = await serve(cluster.issue("a.node.mdi"))
    second = new_server()
    with pytest.raises(RuntimeError):
        second.add_secure_port(address, server_credentials(cluster.issue("b.node.mdi")))
    await second.stop(None)


def test_an_ipv6_address_is_bracketed() -> None:
    assert target("fe80::1", 50) == "[fe80::1]:50"
    assert target("192.168.1.4", 50) == "192.168.1.4:50"
    assert target("pi.local", 50) == "pi.local:50"
