"""Certificates: one secret, one authority; a handshake needs its certificate on both sides."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from aether_core.certs import (
    CA_FILE,
    CERT_FILE,
    KEY_FILE,
    Authority,
    authority,
    client_context,
    load_node_certificate,
    node_of,
    node_uri,
    renew_at,
    server_context,
    trusting,
    write_node_certs,
)
from aether_core.errors import ConfigError
from aether_core.model import NodeId

SECRET = "0123456789abcdef0123456789abcdef"
NODE = NodeId("node-1")

#: Written out: an upgrade of Aether that derives another would lock nodes out of their cluster.
FINGERPRINT = "6a4524edd72b5e939e9cb915f5074f38d80c43b9a389c7755ca085158375e4e4"


clusters = st.from_regex(r"[a-z]{1,8}", fullmatch=True)


@given(secret=st.text(min_size=16, max_size=40), cluster=clusters)
def test_the_same_secret_gives_the_same_bytes(secret: str, cluster: str) -> None:
    assert authority(cluster, secret).certificate_pem == authority(cluster, secret).certificate_pem


def test_the_authority_is_the_one_of_earlier_versions() -> None:
    certificate = authority("prod", SECRET).certificate
    assert certificate.fingerprint(hashes.SHA256()).hex() == FINGERPRINT


def test_another_secret_or_cluster_is_another_authority() -> None:
    pems = {
        authority(cluster, secret).certificate_pem
        for cluster in ("prod", "test")
        for secret in (SECRET, SECRET + "0", SECRET[:-1] + "e")
    }
    assert len(pems) == 6


@pytest.mark.parametrize("secret", ["", "short", "x" * 15])
def test_a_short_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ConfigError, match=f"too short: {len(secret)} characters") as caught:
        authority("prod", secret)
    assert "x" * 15 not in f"{caught.value} {caught.value.hint}"


def test_neither_key_nor_secret_is_ever_printed() -> None:
    assert "key=" not in repr(authority("prod", SECRET))
    assert SECRET not in repr(authority("prod", SECRET))


@pytest.fixture
def ca() -> Authority:
    return authority("prod", SECRET)


def now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  TLS compares with the machine's own clock.


def issue(directory: Path, ca: Authority, node: NodeId = NODE, at: datetime | None = None) -> Path:
    write_node_certs(directory, ca, node=node, addresses=["10.0.0.1"], now=at or now())
    return directory


def test_a_node_certificate_says_who_it_is_for(tmp_path: Path, ca: Authority) -> None:
    issue(tmp_path, ca)
    certificate = x509.load_pem_x509_certificate((tmp_path / CERT_FILE).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "aether://prod/node/node-1"
    ]
    assert names.get_values_for_type(x509.DNSName) == ["node-1.prod.aether", "localhost"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["127.0.0.1", "10.0.0.1"]
    certificate.verify_directly_issued_by(ca.certificate)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert not usage.key_cert_sign, "a node must not make certificates"


def test_certificates_are_for_their_owner_only(tmp_path: Path, ca: Authority) -> None:
    issue(tmp_path / "certs", ca)
    assert (tmp_path / "certs").stat().st_mode & 0o077 == 0
    for name in (CA_FILE, CERT_FILE, KEY_FILE):
        assert (tmp_path / "certs" / name).stat().st_mode & 0o777 == 0o600


def test_renewal_is_at_half_life(tmp_path: Path, ca: Authority) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    until = write_node_certs(tmp_path, ca, node=NODE, addresses=(), now=at)
    start = at - timedelta(hours=1)
    assert until == at + timedelta(days=7)
    assert renew_at(tmp_path / CERT_FILE) == start + (until - start) / 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((("URI", "aether://prod/node/node-1"),), "node-1"),
        ((("DNS", "localhost"), ("URI", "aether://prod/node/n2")), "n2"),
        ((("URI", "aether://other/node/node-1"),), None),
        ((("DNS", "aether://prod/node/node-1"),), None),
        ((), None),
    ],
)
def test_whose_certificate_it_is(names: object, expected: str | None) -> None:
    assert node_of({"subjectAltName": names}, "prod") == expected


@pytest.mark.parametrize("peer", [None, {}, b"", {"subject": ()}])
def test_nobodys_certificate(peer: object) -> None:
    assert node_of(peer, "prod") is None


def test_uris_of_two_clusters_never_share_a_prefix() -> None:
    assert not node_uri("prod", NodeId("n")).startswith(node_uri("pro", NodeId("")))


# Handshakes over loopback


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    """Tell every caller which node it is, "nobody" without a certificate."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = node_of(writer.get_extra_info("peercert"), "prod") or "nobody"
        writer.write(caller.encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(port: int, context: ssl.SSLContext, host: str = "127.0.0.1") -> str:
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=host
        )
        try:
            return (await reader.read()).decode()
        finally:
            writer.close()


async def is_refused(port: int, context: ssl.SSLContext) -> bool:
    """Return whether the server hangs up: in TLS 1.3 it does so after the client's handshake."""
    try:
        return await ask(port, context) == ""
    except OSError:
        return True


async def test_nodes_know_each_other_and_users_are_nobody(tmp_path: Path, ca: Authority) -> None:
    server = server_context(issue(tmp_path / "server", ca))
    client = client_context(issue(tmp_path / "client", ca, NodeId("node-2")))
    async with serving(server) as port:
        assert await ask(port, client) == "node-2"
        assert await ask(port, client, host="node-1.prod.aether") == "node-2"
        assert await ask(port, trusting(ca.certificate_pem)) == "nobody"


@pytest.mark.parametrize("secret", ["another secret of another one", SECRET])
async def test_a_stranger_is_refused_by_both_sides(
    tmp_path: Path, ca: Authority, secret: str
) -> None:
    """Somebody with another secret, and a cluster of another name with the same one."""
    other = authority("prod" if secret != SECRET else "test", secret)
    mine = issue(tmp_path / "mine", ca)
    theirs = issue(tmp_path / "theirs", other)
    pretender = client_context(theirs)
    pretender.load_verify_locations(cadata=ca.certificate_pem)  # Trusts us; may we trust it?
    async with serving(server_context(mine)) as port:
        assert await is_refused(port, pretender)
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(port, client_context(theirs))
    async with serving(server_context(theirs)) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(port, client_context(mine))


@pytest.mark.parametrize("age", [timedelta(days=8), timedelta(days=-1)])
async def test_a_certificate_out_of_its_time_is_refused(
    tmp_path: Path, ca: Authority, age: timedelta
) -> None:
    server = server_context(issue(tmp_path / "server", ca))
    client = client_context(issue(tmp_path / "client", ca, at=now() - age))
    async with serving(server) as port:
        assert await is_refused(port, client)


async def test_a_server_is_held_to_its_name(tmp_path: Path, ca: Authority) -> None:
    async with serving(server_context(issue(tmp_path, ca))) as port:
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            await ask(port, trusting(ca.certificate_pem), host="node-2.prod.aether")


async def test_a_renewed_certificate_serves_without_a_restart(
    tmp_path: Path, ca: Authority
) -> None:
    server = server_context(issue(tmp_path, ca, at=now() - timedelta(days=8)))
    user = trusting(ca.certificate_pem)
    async with serving(server) as port:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await ask(port, user)
        load_node_certificate(server, issue(tmp_path, ca))
        assert await ask(port, user) == "nobody"
