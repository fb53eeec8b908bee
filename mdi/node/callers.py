"""Who calls: proved by the certificate of the connection."""

from __future__ import annotations

import grpc

from mdi.cluster.identity import peer_node_id
from mdi.errors import PeerError

CERTIFICATE = "x509_pem_cert"  # gRPC's name for the peer's leaf


def caller_id(context: grpc.aio.ServicerContext) -> str:
    """The node id of the caller. Raises PeerError when its certificate names another node than its key does."""
    certificates = context.auth_context().get(CERTIFICATE, ())
    if len(certificates) != 1:
        raise PeerError("the caller showed no certificate")
    return peer_node_id(certificates[0])
