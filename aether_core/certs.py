"""Certificates derived from the cluster secret: whoever holds it has the same authority.

The only door to `cryptography`. The CA key is HKDF-SHA256 (RFC 5869) over the secret, reduced to a
P-256 scalar from 64 bytes, so that the reduction's bias is below 2^-250 (FIPS 186-5, A.2.1). The
CA certificate is signed deterministically (RFC 6979): every holder makes the same bytes.
"""

import ipaddress
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aether_core.boot import write_private
from aether_core.errors import ConfigError
from aether_core.model import NodeId

MIN_SECRET_CHARACTERS = 16
LEAF_LIFETIME = timedelta(days=7)
# Other machines' clocks may be behind ours.
CLOCK_SKEW = timedelta(hours=1)
# A constant, so that the CA is the same wherever and whenever it is derived.
CA_FROM, CA_UNTIL = datetime(2024, 1, 1, tzinfo=UTC), datetime(2124, 1, 1, tzinfo=UTC)
# The order of P-256: SEC 2, section 2.4.2.
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

CA_FILE, CERT_FILE, KEY_FILE = "ca.pem", "node.pem", "node.key"


@dataclass(frozen=True)
class Authority:
    """The cluster's certificate authority."""

    cluster: str
    certificate_pem: str
    certificate: x509.Certificate = field(repr=False)
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def authority(cluster: str, secret: str) -> Authority:
    """Derive the authority. Errors: ConfigError for a secret that is too short."""
    if len(secret) < MIN_SECRET_CHARACTERS:
        raise ConfigError(
            f"the cluster secret is too short: {len(secret)} characters",
            hint=f"use at least {MIN_SECRET_CHARACTERS}, such as `openssl rand -hex 32`",
        )
    key = _derived_key(cluster, secret)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"aether {cluster} ca")])
    public = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(int.from_bytes(_digest(public)[:16], "big") or 1)
        .not_valid_before(CA_FROM)
        .not_valid_after(CA_UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    return Authority(cluster, _pem(certificate), certificate, key)


def write_node_certs(
    directory: Path, ca: Authority, *, node: NodeId, addresses: Iterable[str], now: datetime
) -> datetime:
    """Issue a certificate for `node` and write ca.pem, node.pem and node.key; return its expiry.

    It names the node (`<node>.<cluster>.aether` and a URI), loopback and `addresses`, and serves
    both sides of mTLS: etcd's gateway dials its own member with the server's certificate.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _leaf(ca, key, node, ["127.0.0.1", *addresses], now)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(directory / CA_FILE, ca.certificate_pem.encode())
    write_private(directory / KEY_FILE, private)
    write_private(directory / CERT_FILE, _pem(certificate).encode())
    return certificate.not_valid_after_utc


def renew_at(certificate_file: Path) -> datetime:
    """Return the half-life of the certificate: when it should be replaced."""
    certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start + (end - start) / 2


def server_context(directory: Path) -> ssl.SSLContext:
    """Return the TLS settings of a node's API: clients may show a certificate of the cluster."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_node_certificate(context, directory)
    context.load_verify_locations(directory / CA_FILE)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def load_node_certificate(context: ssl.SSLContext, directory: Path) -> None:
    """Use the directory's certificate for every later connection."""
    context.load_cert_chain(directory / CERT_FILE, directory / KEY_FILE)


def client_context(directory: Path) -> ssl.SSLContext:
    """Return the TLS settings of a node as a client: mTLS, trusting only the cluster's CA."""
    context = trusting(
        (directory / CA_FILE).read_text(),
    )
    load_node_certificate(context, directory)
    return context


def trusting(ca_pem: str) -> ssl.SSLContext:
    """Return the TLS settings of a user: only the cluster's CA counts, no certificate shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_pem)
    return context


def node_uri(cluster: str, node: NodeId) -> str:
    """Return a node's identity as it stands in its certificate."""
    return f"aether://{cluster}/node/{node}"


def node_of(peer: object, cluster: str) -> NodeId | None:
    """Return the node that a verified peer certificate (`SSLSocket.getpeercert`) names."""
    names = peer.get("subjectAltName", ()) if isinstance(peer, dict) else ()
    prefix = node_uri(cluster, NodeId(""))
    for kind, value in names:
        if kind == "URI" and value.startswith(prefix):
            return NodeId(value.removeprefix(prefix))
    return None


def _derived_key(cluster: str, secret: str) -> ec.EllipticCurvePrivateKey:
    hkdf = HKDF(hashes.SHA256(), length=64, salt=b"aether ca v1", info=cluster.encode())
    wide = int.from_bytes(hkdf.derive(secret.encode()), "big")
    return ec.derive_private_key(wide % (P256_ORDER - 1) + 1, ec.SECP256R1())


def _leaf(
    ca: Authority,
    key: ec.EllipticCurvePrivateKey,
    node: NodeId,
    addresses: list[str],
    now: datetime,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    alternatives: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(node_uri(ca.cluster, node)),
        x509.DNSName(f"{node}.{ca.cluster}.aether"),
        x509.DNSName("localhost"),
    ]
    for address in dict.fromkeys(addresses):
        alternatives.append(x509.IPAddress(ipaddress.ip_address(address)))
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    both_sides = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LEAF_LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_sides), critical=False)
        .add_extension(issuer_key, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(ca.key, hashes.SHA256())
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _digest(public: ec.EllipticCurvePublicKey) -> bytes:
    return x509.SubjectKeyIdentifier.from_public_key(public).digest


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
