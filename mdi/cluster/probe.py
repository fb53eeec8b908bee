"""Ask an address which node answers there, before gRPC is tried.

gRPC calls a wrong key, a wrong name and a dead host all "unavailable"; this tells them apart. TLS 1.3 proves that the peer
holds the private key of its certificate even when nothing verifies the issuer, and servers that demand a client certificate
show theirs first.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from cryptography import x509

from mdi.cluster.certificates import Authority, claimed_fingerprint
from mdi.cluster.identity import peer_node_id
from mdi.cluster.peers import PeerAddress
from mdi.errors import LinkError, PeerError, WrongCluster

PROBE_TIMEOUT_S = 5.0  # a lost SYN is sent again after 1 s and 3 s


async def probe_certificate(peer: PeerAddress, authority: Authority, *, timeout_s: float = PROBE_TIMEOUT_S) -> str:
    """The id of the node that answers at `peer`, which is proved to be a member of the cluster of `authority`.

    Raises LinkError (nothing answers), PeerError (it is no MDI node) or WrongCluster (it holds another cluster key).
    """
    try:
        async with asyncio.timeout(timeout_s):
            certificate = await _read_certificate(peer)
    except TimeoutError:
        raise LinkError(
            f"{peer} did not answer within {timeout_s:g} s", hint="is the device on, and does a firewall let the port through?"
        ) from None
    try:
        leaf = x509.load_der_x509_certificate(certificate)
        theirs = claimed_fingerprint(leaf)
    except ValueError as error:
        raise _not_a_node(peer) from error
    if authority.has_issued(leaf):
        return peer_node_id(certificate)
    if theirs is None:
        raise _not_a_node(peer)
    raise WrongCluster(
        f"{peer} holds another cluster key: its fingerprint is {theirs[:16]!r}, this device's is {authority.fingerprint!r}",
        hint="give both devices the same cluster key",
    )


async def _read_certificate(peer: PeerAddress) -> bytes:
    try:
        _, writer = await asyncio.open_connection(peer.host, peer.port, happy_eyeballs_delay=0.25)  # RFC 8305's delay
    except socket.gaierror as error:
        raise LinkError(f"the name {peer.host!r} is not known on this network", hint="try its IP address") from error
    except OSError as error:
        raise LinkError(
            f"{peer} cannot be reached: {error.strerror or error}", hint="is `mdi node start` running there, on that port?"
        ) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the issuer's signature is checked above, by the certificate itself
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        await writer.start_tls(context, server_hostname=peer.host)
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        certificate = connection.getpeercert(binary_form=True)
    except (ssl.SSLError, OSError, EOFError) as error:
        raise _not_a_node(peer) from error
    finally:
        writer.transport.abort()
    if certificate is None:
        raise _not_a_node(peer)
    return certificate


def _not_a_node(peer: PeerAddress) -> PeerError:
    return PeerError(f"what answers at {peer} is not an MDI node", hint="check the port, and the version of MDI there")
