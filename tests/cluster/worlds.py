"""Small worlds for tests of the ingress: real backends, real certificates, given ports."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from aether_core import certs
from aether_core.envoy import World
from aether_core.model import (
    Assignment,
    Fleet,
    FleetId,
    HealthCheck,
    InstanceId,
    InstanceSpec,
    InstanceState,
    InstanceStatus,
    NodeId,
    NodeRecord,
    NodeState,
    Ports,
    Route,
    RouteTable,
)
from tests.cluster.conftest import free_port

AT = datetime(2026, 1, 1, tzinfo=UTC)
CA = certs.authority("test", "a secret for tests only")


@dataclass
class Backend:
    """An HTTP server that answers with its name.

    `hold` keeps requests to /hold waiting, and a /stream from its end; /broken answers 500.
    """

    name: str
    port: int = 0
    requests: int = 0
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    server: asyncio.Server | None = None

    async def start(self) -> "Backend":
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if b"aether-health" not in head and b"Envoy/HC" not in head:
                    self.requests += 1
                if head.startswith(b"GET /hold"):
                    await self.hold.wait()
                if b"upgrade: websocket" in head.lower():
                    writer.write(
                        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                        b"Upgrade: websocket\r\n\r\n"
                    )
                    while data := await reader.read(1024):
                        writer.write(data)
                    break
                body = self.name.encode()
                if head.startswith(b"GET /stream"):
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    chunk = b"%x\r\n%s\r\n" % (len(body), body)
                    writer.write(chunk)
                    await self.hold.wait()
                    writer.write(chunk + b"0\r\n\r\n")
                    continue
                status = b"500 Broken" if head.startswith(b"GET /broken") else b"200 OK"
                length = b"Content-Length: %d" % len(body)
                writer.write(b"HTTP/1.1 %s\r\n%s\r\n\r\n%s" % (status, length, body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def fleet(version: str, *, slice_name: str = "web") -> Fleet:
    spec = InstanceSpec(
        slice_name, version, f"{slice_name}:{version}", "0", "pyz", health=HealthCheck("/health")
    )
    return Fleet(FleetId(f"{slice_name}@{version}"), "shop", spec, 1)


def empty_world(data_dir: Path, node: str = "node-1") -> World:
    certs_dir = data_dir / "certs"
    certs.write_node_certs(
        certs_dir,
        CA,
        node=NodeId(node),
        addresses=(),
        now=datetime.now(UTC),  # noqa: TID251
    )
    return World(
        cluster="test",
        node=NodeId(node),
        bind="127.0.0.1",
        live_dir=data_dir / "envoy" / "live",
        ca_file=certs_dir / certs.CA_FILE,
        certificate_pem=(certs_dir / certs.CERT_FILE).read_text(),
        key_pem=(certs_dir / certs.KEY_FILE).read_text(),
        nodes={},
        routes=RouteTable(),
        fleets=(),
        assignments=(),
        statuses=(),
        public_port=free_port(),
        inner_port=free_port(),
        mesh_port=free_port(),
    )


def record_of(world: World) -> NodeRecord:
    ports = Ports(0, world.public_port, world.inner_port, world.mesh_port, 0, 0)
    return NodeRecord(world.node, "127.0.0.1", ports, True, "m", NodeState.ON_DUTY, AT)


def with_instances(world: World, *fleets: tuple[Fleet, list[tuple[str, int]]]) -> World:
    """Add fleets whose READY instances are at (node, port)."""
    assignments, statuses = [], []
    for wanted, places in fleets:
        for number, (node, port) in enumerate(places):
            name = InstanceId(f"{wanted.id}-{number}")
            assignments.append(Assignment(name, NodeId(node), wanted.id))
            statuses.append(
                InstanceStatus(name, NodeId(node), wanted.id, InstanceState.READY, AT, port=port)
            )
    return replace(
        world,
        fleets=tuple(wanted for wanted, _ in fleets),
        assignments=tuple(assignments),
        statuses=tuple(statuses),
    )


def with_shares(world: World, shares: dict[str, dict[str, int]], **prefixes: str) -> World:
    """Route every slice, by default at "/", with the shares given in basis points."""
    routes = tuple(Route("*", prefixes.get(name, "/"), name) for name in shares)
    typed = {name: {FleetId(f): bp for f, bp in parts.items()} for name, parts in shares.items()}
    return replace(world, routes=RouteTable(routes, typed))
