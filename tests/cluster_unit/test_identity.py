from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mdi.cluster.certificates import Authority, issue_credentials
from mdi.cluster.home import Home
from mdi.cluster.identity import Identity, is_node_id, node_id_of, peer_node_id
from mdi.cluster.key import ClusterKey
from mdi.cluster.private_files import write_private
from mdi.errors import PeerError, UserError


def test_an_identity_outlives_restarts_and_a_new_cluster_key(home: Home) -> None:
    identity = Identity.load_or_create(home)
    assert is_node_id(identity.node_id)
    again = Identity.load_or_create(home)
    assert again.node_id == identity.node_id
    assert {peer_node_id(issue_credentials(ClusterKey.generate(), again).certificate_pem) for _ in range(2)} == {
        identity.node_id
    }


def test_processes_that_start_together_become_the_same_node(home: Home) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: Identity.load_or_create(home).node_id, range(8)))) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nnot\n-----END PRIVATE KEY-----\n",
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        Identity("", ec.generate_private_key(ec.SECP384R1())).private_key_pem,
    ],
)
def test_a_damaged_identity_is_never_replaced_silently(home: Home, content: bytes) -> None:
    write_private(home.identity_path, content)
    with pytest.raises(UserError, match="damaged"):
        Identity.load_or_create(home)
    assert home.identity_path.read_bytes() == content


def test_the_peer_is_read_from_pem_and_der() -> None:
    identity = Identity.generate()
    pem = issue_credentials(ClusterKey.generate(), identity).certificate_pem
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    assert peer_node_id(pem) == peer_node_id(der) == identity.node_id == node_id_of(identity.private_key.public_key())


def test_a_member_cannot_pose_as_another() -> None:
    victim, liar = Identity.generate(), Identity.generate()
    forged = Authority.of(ClusterKey.generate()).issue(Identity(victim.node_id, liar.private_key))
    with pytest.raises(PeerError, match=liar.node_id):
        peer_node_id(forged.certificate_pem)


def test_other_certificates_are_refused() -> None:
    credentials = issue_credentials(ClusterKey.generate(), Identity.generate())
    for certificate in (b"", b"-----BEGIN nothing", b"\x30\x00", credentials.ca_pem):
        with pytest.raises(PeerError, match="not that of an MDI node"):
            peer_node_id(certificate)
