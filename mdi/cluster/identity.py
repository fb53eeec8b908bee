"""Who a node is: a key pair of its own, and the hash of its public half as its id."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mdi.cluster.home import Home
from mdi.cluster.private_files import read_private, write_private
from mdi.errors import PeerError, UserError

NODE_ID_CHARACTERS = 32  # 128 bits: nobody finds a second key pair with the same id
NODE_DOMAIN = "node.mdi"

_NODE_ID = re.compile(f"[0-9a-f]{{{NODE_ID_CHARACTERS}}}")


def is_node_id(text: str) -> bool:
    return _NODE_ID.fullmatch(text) is not None


def node_host(node_id: str) -> str:
    """The name in a node's certificate: what `grpc.ssl_target_name_override` must be set to when dialling it."""
    return f"{node_id}.{NODE_DOMAIN}"


def node_id_of(public_key: ec.EllipticCurvePublicKey) -> str:
    """The first 32 hexadecimal characters of the SHA-256 of the public key (DER SubjectPublicKeyInfo)."""
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()[:NODE_ID_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's id and its P-256 private key; both outlive restarts and a change of the cluster key."""

    node_id: str
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> Identity:
        private_key = ec.generate_private_key(ec.SECP256R1())
        return cls(node_id_of(private_key.public_key()), private_key)

    @classmethod
    def load_or_create(cls, home: Home) -> Identity:
        """The identity of this home, made on first use. Raises UserError if the file is damaged or open to others."""
        data = read_private(home.identity_path)
        if data is None:
            identity = cls.generate()
            if write_private(home.identity_path, identity.private_key_pem, replace=False):
                return identity
            data = read_private(home.identity_path) or b""  # another process was faster: it is that node
        try:
            private_key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise _damaged(home) from error
        if not isinstance(private_key, ec.EllipticCurvePrivateKey) or private_key.curve.name != "secp256r1":
            raise _damaged(home)
        return cls(node_id_of(private_key.public_key()), private_key)

    @property
    def private_key_pem(self) -> bytes:
        """PKCS #8, not encrypted."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def peer_node_id(certificate: bytes) -> str:
    """The id of the node that holds `certificate` (PEM or DER), whose issuer TLS has verified already.

    The name in the certificate must be the hash of the key in it, so a member that holds the cluster key, and so could issue
    itself any name, cannot pose as another node. Raises PeerError.
    """
    try:
        is_pem = certificate.startswith(b"-----BEGIN")
        leaf = x509.load_pem_x509_certificate(certificate) if is_pem else x509.load_der_x509_certificate(certificate)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
        public_key = leaf.public_key()
    except (ValueError, x509.ExtensionNotFound) as error:
        raise PeerError("the peer's certificate is not that of an MDI node") from error
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or len(names) != 1 or not names[0].endswith(f".{NODE_DOMAIN}"):
        raise PeerError("the peer's certificate is not that of an MDI node")
    node_id = node_id_of(public_key)
    if names[0] != node_host(node_id):
        raise PeerError(f"the peer calls itself {names[0][:80]!r}, but its key is that of node {node_id}")
    return node_id


def _damaged(home: Home) -> UserError:
    return UserError(
        f"{home.identity_path} is damaged: it holds no P-256 private key",
        hint="remove it; the next start makes a new identity",
    )
