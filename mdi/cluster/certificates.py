"""Certificates without an enrolment service: who holds the cluster key is the certificate authority.

Every holder derives the same P-256 CA key from the cluster key and issues itself a leaf for its own key pair. The CA
certificates of two holders differ in their bytes (ECDSA signatures are random), but each verifies the leaves of the other.

Members trust each other: any of them can issue a certificate with any name. `peer_node_id` still notices a name that is not the
hash of its key; a server can ask it for each caller. To expel a device, change the cluster key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mdi.cluster.identity import Identity, node_host
from mdi.cluster.key import ClusterKey

# A Pi has no battery clock: until it reaches a time server it lives in 1970 or on the day of its last shutdown, and off-line
# for ever. Validity must not depend on that. Nothing is lost: leaves are re-issued at every start by who holds the key, and
# only a new cluster key shuts a device out. The end is RFC 5280's (4.1.2.5) for "no expiration".
NOT_BEFORE = datetime(1970, 1, 1, tzinfo=UTC)
NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)

ORGANIZATION = "MDI cluster"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SCALAR_BYTES = 40  # 64 bits more than the order, so that the modulo is not biased (FIPS 186-5, A.2.1)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a node needs for mutual TLS: PEM bytes for `grpc.ssl_channel_credentials` and `grpc.ssl_server_credentials`."""

    node_id: str
    ca_pem: bytes
    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate authority of one cluster."""

    fingerprint: str
    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def of(cls, key: ClusterKey) -> Authority:
        scalar = int.from_bytes(key.derive("certificate authority", SCALAR_BYTES)) % (P256_ORDER - 1) + 1
        private_key = ec.derive_private_key(scalar, ec.SECP256R1())
        name = _name(f"cluster {key.fingerprint}")
        builder = (
            _builder(name, name, private_key.public_key(), private_key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_ca=True), critical=True)
        )
        return cls(key.fingerprint, builder.sign(private_key, hashes.SHA256()), private_key)

    def issue(self, identity: Identity) -> Credentials:
        """A fresh leaf for `identity`, for both roles, named `<node id>.node.mdi`."""
        host = node_host(identity.node_id)
        builder = (
            _builder(_name(host), self.certificate.subject, identity.private_key.public_key(), self.private_key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        )
        leaf = builder.sign(self.private_key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        return Credentials(
            identity.node_id, self.certificate.public_bytes(pem), leaf.public_bytes(pem), identity.private_key_pem
        )

    def has_issued(self, leaf: x509.Certificate) -> bool:
        """Whether `leaf` bears the signature of this cluster."""
        try:
            leaf.verify_directly_issued_by(self.certificate)
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True


def issue_credentials(key: ClusterKey, identity: Identity) -> Credentials:
    """The credentials of the node `identity` in the cluster of `key`."""
    return Authority.of(key).issue(identity)


def claimed_fingerprint(leaf: x509.Certificate) -> str | None:
    """The cluster that `leaf` says it comes from, not verified; None if it is no certificate of MDI."""
    organizations = leaf.issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    names = leaf.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(organizations) != 1 or organizations[0].value != ORGANIZATION or len(names) != 1:
        return None
    return str(names[0].value).removeprefix("cluster ")


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
