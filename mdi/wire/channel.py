"""How nodes open and accept gRPC connections: mutual TLS under the cluster's CA, and limits that notice a silent peer.

A node is dialled by address and verified by its id: its certificate says `<node id>.node.mdi`. A peer with another cluster key,
with no certificate or with another node's is UNAVAILABLE to the client: gRPC tells no more (`mdi doctor` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import grpc

from mdi.errors import WrongCluster
from mdi.wire.frame import MAX_FRAME_BYTES

Options: TypeAlias = tuple[tuple[str, int | str], ...]

NODE_DOMAIN = ".node.mdi"

# A peer is declared dead KEEPALIVE_MS + PING_TIMEOUT_MS after it fell silent: 4.7 s measured with a stopped process.
# gRPC's own `keepalive_timeout` does not shorten that; with it alone detection took 61 s.
KEEPALIVE_MS = 2_000
PING_TIMEOUT_MS = 3_000

PACK_CHUNK_BYTES = 1 << 20  # large enough for full speed, small enough that frames of other calls pass between
MAX_MESSAGE_BYTES = MAX_FRAME_BYTES + (64 << 10)  # a frame over its limit reaches our decoder, which names what is wrong

# A node that comes back must be found within seconds; by default gRPC waits up to two minutes between attempts.
RECONNECT_FIRST_MS = 200
RECONNECT_LAST_MS = 2_000
CONNECT_TIMEOUT_MS = 5_000  # TCP and TLS of a Pi on bad Wi-Fi

_BOTH: Options = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),  # an idle cluster notices too
    ("grpc.http2.max_pings_without_data", 0),  # 0: no limit; the default stops pinging during a long computation
)

CLIENT_OPTIONS: Options = (
    *_BOTH,
    ("grpc.enable_http_proxy", 0),  # nodes are on the user's own network, whatever http_proxy says
    ("grpc.use_local_subchannel_pool", 1),  # a closed channel's connection, and its backoff, die with it
    ("grpc.enable_retries", 0),  # recovery replays from the tokens; a frame that gRPC sent twice would be refused
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_LAST_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),  # despite its name: how long one attempt may take
)

SERVER_OPTIONS: Options = (
    *_BOTH,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 0),  # without these two the server answers pings with GOAWAY
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),  # a second node on the same port must fail, not take half of the connections
)


class PemCredentials(Protocol):
    """A node's certificate under the cluster's CA, with its private key, in PEM."""

    @property
    def ca_pem(self) -> bytes: ...
    @property
    def certificate_pem(self) -> bytes: ...
    @property
    def private_key_pem(self) -> bytes: ...


def target(host: str, port: int) -> str:
    """`host:port` as gRPC wants it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_channel(address: str, credentials: PemCredentials, node_id: str) -> grpc.aio.Channel:
    """A channel to `node_id` at `address` (see `target`). It connects at the first call; end it with `await close()`."""
    tls = grpc.ssl_channel_credentials(credentials.ca_pem, credentials.private_key_pem, credentials.certificate_pem)
    options = (*CLIENT_OPTIONS, ("grpc.ssl_target_name_override", node_id + NODE_DOMAIN))
    return grpc.aio.secure_channel(address, tls, options=options)


def server_credentials(credentials: PemCredentials) -> grpc.ServerCredentials:
    """Admits only clients with a certificate under the same CA."""
    pair = (credentials.private_key_pem, credentials.certificate_pem)
    return grpc.ssl_server_credentials([pair], root_certificates=credentials.ca_pem, require_client_auth=True)


def new_server(handlers: Sequence[grpc.GenericRpcHandler] = ()) -> grpc.aio.Server:
    """A server without ports: add one with `add_secure_port(target(host, port), server_credentials(...))`."""
    return grpc.aio.server(handlers=tuple(handlers), options=SERVER_OPTIONS)


def peer_node_id(context: grpc.aio.ServicerContext) -> str:
    """The id in the caller's certificate, which the CA vouches for. Raises WrongCluster when it has none."""
    names = context.auth_context().get("x509_subject_alternative_name", ())
    ids: list[str] = [name.decode().removesuffix(NODE_DOMAIN) for name in names if name.endswith(NODE_DOMAIN.encode())]
    if len(ids) != 1:
        raise WrongCluster(
            f"A caller's certificate names {len(ids)} nodes instead of one.", hint="Restart `mdi node start` there."
        )
    return ids[0]
