"""Certificates are judged by the TLS that uses them: gRPC servers and clients on loopback."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from mdi.cluster.certificates import Authority, Credentials, claimed_fingerprint, issue_credentials
from mdi.cluster.identity import Identity, node_host, peer_node_id
from mdi.cluster.key import ClusterKey
from mdi.cluster.peers import PeerAddress
from mdi.cluster.probe import probe_certificate
from mdi.errors import LinkError, PeerError, WrongCluster

KEY, OTHER_KEY = ClusterKey(bytes(range(16))), ClusterKey(bytes(16))
SERVER, CLIENT = Identity.generate(), Identity.generate()
DEADLINE_S = 5.0


async def who(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """Answers the id of the caller, read from its certificate."""
    return peer_node_id(context.auth_context()["x509_pem_cert"][0]).encode()


@asynccontextmanager
async def serve(credentials: Credentials | None) -> AsyncIterator[int]:
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("test", {"who": grpc.unary_unary_rpc_method_handler(who)})
    server.add_generic_rpc_handlers((handler,))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        tls = grpc.ssl_server_credentials(
            [(credentials.private_key_pem, credentials.certificate_pem)], credentials.ca_pem, require_client_auth=True
        )
        port = server.add_secure_port("127.0.0.1:0", tls)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def ask(port: int, credentials: Credentials | None, node_id: str, ca_pem: bytes | None = None) -> str:
    """The id that the server reads from `credentials`, dialled as `node_id`."""
    tls = (
        grpc.ssl_channel_credentials(credentials.ca_pem, credentials.private_key_pem, credentials.certificate_pem)
        if credentials
        else grpc.ssl_channel_credentials(ca_pem)
    )
    options = [("grpc.ssl_target_name_override", node_host(node_id)), ("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", tls, options=options) as channel:
        return (await channel.unary_unary("/test/who")(b"", timeout=DEADLINE_S)).decode()


async def test_holders_of_one_key_verify_each_other() -> None:
    for server, client in ((SERVER, CLIENT), (CLIENT, SERVER)):
        async with serve(issue_credentials(KEY, server)) as port:
            assert await ask(port, issue_credentials(KEY, client), server.node_id) == client.node_id


async def test_strangers_are_refused_in_both_directions() -> None:
    async with serve(issue_credentials(KEY, SERVER)) as port:
        ours, theirs = issue_credentials(KEY, CLIENT), issue_credentials(OTHER_KEY, CLIENT)
        impostor = Credentials(theirs.node_id, ours.ca_pem, theirs.certificate_pem, theirs.private_key_pem)
        for credentials in (theirs, impostor, None):  # trusts another CA; is of another CA; shows no certificate
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(port, credentials, SERVER.node_id, ours.ca_pem)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await ask(port, ours, SERVER.node_id) == CLIENT.node_id


async def test_the_right_cluster_but_another_node_is_refused() -> None:
    async with serve(issue_credentials(KEY, SERVER)) as port:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(port, issue_credentials(KEY, CLIENT), CLIENT.node_id)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_authority_is_the_same_on_every_device() -> None:
    one, two = Authority.of(KEY), Authority.of(ClusterKey.parse(KEY.text))
    assert one.private_key.private_numbers() == two.private_key.private_numbers()
    assert one.certificate.subject == two.certificate.subject
    leaf = x509.load_pem_x509_certificate(two.issue(SERVER).certificate_pem)
    assert one.has_issued(leaf)
    assert claimed_fingerprint(leaf) == KEY.fingerprint
    assert not Authority.of(OTHER_KEY).has_issued(leaf)
    # Pinned: a change here would tear every existing cluster apart.
    assert KEY.fingerprint == "8870a217"
    assert one.private_key.public_key().public_numbers().x % 2**32 == 557230311


def test_secrets_are_not_shown() -> None:
    credentials = issue_credentials(KEY, SERVER)
    for shown in (repr(credentials), repr(SERVER), repr(Authority.of(KEY))):
        assert "PRIVATE" not in shown
        assert KEY.text not in shown


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed")
@pytest.mark.parametrize("clock_s", [1, 4102444800, 32503680000], ids=["1970", "2100", "3000"])
def test_no_clock_is_too_wrong(tmp_path: Path, clock_s: int) -> None:
    credentials = issue_credentials(KEY, SERVER)
    (tmp_path / "ca.pem").write_bytes(credentials.ca_pem)
    (tmp_path / "leaf.pem").write_bytes(credentials.certificate_pem)
    for purpose in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-attime", str(clock_s), "-purpose", purpose]
        command += [
            "-verify_hostname",
            node_host(SERVER.node_id),
            "-CAfile",
            str(tmp_path / "ca.pem"),
            str(tmp_path / "leaf.pem"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env={"PATH": os.environ["PATH"]})
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("no_leaks")
async def test_a_probe_names_the_node_or_what_is_wrong() -> None:
    async with serve(issue_credentials(KEY, SERVER)) as port:
        for host in ("127.0.0.1", "localhost"):
            assert await probe_certificate(PeerAddress(host, port), Authority.of(KEY)) == SERVER.node_id
        with pytest.raises(WrongCluster, match=KEY.fingerprint) as refused:
            await probe_certificate(PeerAddress("127.0.0.1", port), Authority.of(OTHER_KEY))
        assert OTHER_KEY.fingerprint in str(refused.value)
    with pytest.raises(LinkError, match="cannot be reached"):
        await probe_certificate(PeerAddress("127.0.0.1", port), Authority.of(KEY))


async def test_a_probe_of_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*args: object, **kwargs: object) -> None:  # a real look-up would ask the name servers of the network
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(LinkError, match="not known"):
        await probe_certificate(PeerAddress("no-such-host"), Authority.of(KEY))


@pytest.mark.usefixtures("no_leaks")
async def test_a_probe_of_another_service() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(replies.pop())
        writer.close()

    async with serve(None) as port:
        with pytest.raises(PeerError, match="not an MDI node"):
            await probe_certificate(PeerAddress("127.0.0.1", port), Authority.of(KEY))
    replies = [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100)]
    while replies:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            with pytest.raises(PeerError, match="not an MDI node"):
                await probe_certificate(PeerAddress("127.0.0.1", server.sockets[0].getsockname()[1]), Authority.of(KEY))
    with pytest.raises(PeerError, match="not an MDI node"):
        async with serve(_foreign_credentials()) as port:
            await probe_certificate(PeerAddress("127.0.0.1", port), Authority.of(KEY))


@pytest.mark.usefixtures("no_leaks")
async def test_a_probe_of_a_frozen_node_has_a_deadline() -> None:
    released = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        released.set()

    async with await asyncio.start_server(silence, "127.0.0.1", 0) as server:
        with pytest.raises(LinkError, match=r"within 0\.2 s"):
            await probe_certificate(
                PeerAddress("127.0.0.1", server.sockets[0].getsockname()[1]), Authority.of(KEY), timeout_s=0.2
            )
        async with asyncio.timeout(5):
            await released.wait()  # the probe has closed its connection


async def test_a_probe_notices_a_node_that_poses_as_another() -> None:
    forged = Authority.of(KEY).issue(Identity(CLIENT.node_id, SERVER.private_key))
    async with serve(forged) as port:
        with pytest.raises(PeerError, match="calls itself"):
            await probe_certificate(PeerAddress("127.0.0.1", port), Authority.of(KEY))


def _foreign_credentials() -> Credentials:
    """TLS that has nothing to do with MDI: a certificate that signs itself."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "printer")])
    certificate = Authority.of(KEY).certificate
    builder = x509.CertificateBuilder(name, name, SERVER.private_key.public_key(), 1)
    builder = builder.not_valid_before(certificate.not_valid_before_utc).not_valid_after(certificate.not_valid_after_utc)
    pem = builder.sign(SERVER.private_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return Credentials(SERVER.node_id, pem, pem, SERVER.private_key_pem)
