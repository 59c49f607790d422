"""A node's API as it is, over a real etcd member: for tests that ask it from outside."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from aether_core import certs, keys
from aether_core.api.app import create_app
from aether_core.artifacts import replicate
from aether_core.blobs import Blobs
from aether_core.boot import Boot
from aether_core.client import PeerClient
from aether_core.clock import SystemClock
from aether_core.ingress import Ingress
from aether_core.model import (
    NodeId,
    NodeRecord,
    NodeState,
    NodeStatus,
    Ports,
    Resources,
    Role,
    RouteTable,
)
from aether_core.node import Node
from aether_core.plugins import Hooks
from aether_core.serve import serve
from aether_core.store import put
from aether_core.store_etcd import EtcdStore
from aether_core.token import new_token
from tests.cluster.conftest import free_port

CLUSTER = "test"
SECRET = "a secret for tests only"
CAPACITY = Resources(4.0, 1024**3)
BOUND_S = 30.0


class ShiftedClock(SystemClock):
    """The machine's clock, which a test may put forward."""

    shift = timedelta(0)

    def at(self) -> datetime:
        return super().at() + self.shift


@dataclass
class Api:
    """One node with its application; `tokens` are in its store."""

    node: Node
    clock: ShiftedClock
    app: FastAPI
    tls: ssl.SSLContext
    tokens: dict[Role, str] = field(default_factory=dict)

    def asks(self, role: Role | None = None, *, token: str = "", peer: str = "") -> Any:
        """Return a client in the same process: by role, with a token, or as the node `peer`."""
        token = self.tokens[role] if role else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.ASGITransport(
            _shown_by(self.app, peer) if peer else self.app, raise_app_exceptions=False
        )
        return httpx.AsyncClient(transport=transport, base_url="https://node", headers=headers)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.node.boot.ports.api}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Answer on the node's port with TLS; yield its address."""
        ports = self.node.boot.ports
        serving = asyncio.ensure_future(serve(self.app, "127.0.0.1", ports.api, self.tls))
        await asyncio.sleep(0)  # It listens as soon as it has begun.
        try:
            yield self.url
        finally:
            await ended(serving)

    async def entries(self, prefix: str) -> list[bytes]:
        """Return the values that etcd itself has under `prefix`."""
        return [entry.value for entry in (await self.node.joined_store().list(prefix)).entries]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            with self.node.mirror.watching() as changed:
                while not holds():
                    await changed.wait()
                    changed.clear()


@asynccontextmanager
async def running_api(
    directory: Path, endpoint: str, *, name: str = "node-1", is_replicating: bool = True
) -> AsyncIterator[Api]:
    """Make a node on duty whose mirror and artifact loops run."""
    clock, node_id = ShiftedClock(), NodeId(name)
    authority = certs.authority(CLUSTER, SECRET)
    certs.write_node_certs(
        directory / "certs", authority, node=node_id, addresses=(), now=clock.at()
    )
    ports = Ports(free_port(), 0, 0, 0, 0, 0)
    node = Node(
        boot=Boot(CLUSTER, node_id, "local", ports, "127.0.0.1", True, SECRET),
        data_dir=directory,
        clock=clock,
        client=PeerClient(certs.client_context(directory / "certs")),
        hooks=Hooks(()),
        blobs=Blobs(directory / "artifacts"),
        ingress=Ingress(directory, clock),
        store=EtcdStore([endpoint], ssl.create_default_context(), clock),
    )
    api = Api(node, clock, create_app(node), certs.server_context(directory / "certs"))
    await _move_in(api)
    loops: list[Awaitable[None]] = [node.mirror.follow(node.joined_store(), keys.ROOT)]
    loops += [replicate(node)] if is_replicating else []
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        await api.until(lambda: node.mirror.get(NodeStatus, keys.node_status(node_id)) is not None)
        yield api
    finally:
        for task in tasks:
            await ended(task)
        await node.client.close()
        await node.joined_store().close()


async def ended(task: asyncio.Future[Any]) -> None:
    """Cancel the task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _move_in(api: Api) -> None:
    """Write what a bootstrap and the node's own loops would have written by now."""
    node, now = api.node, api.clock.at()
    record = NodeRecord(
        node.id, "127.0.0.1", node.boot.ports, True, "machine", NodeState.ON_DUTY, now
    )
    status = NodeStatus(node.id, CAPACITY, 1, "0", now)
    writes = [
        put(keys.CLUSTER, {"name": CLUSTER, "provider": "local"}),
        put(keys.ROUTES, RouteTable()),
        put(keys.node(node.id), record),
        put(keys.node_status(node.id), status),
    ]
    for role in Role:
        api.tokens[role], token = new_token(f"{role}-{node.id}", role, now=now)
        writes.append(put(keys.token(token.id), token))
    assert await node.joined_store().commit(writes)


def certificate_of(node: str, cluster: str = CLUSTER) -> dict[str, Any]:
    """Return what TLS says of a verified certificate of `node`."""
    return {"subjectAltName": (("URI", certs.node_uri(cluster, NodeId(node))),)}


def _shown_by(app: FastAPI, peer: str) -> Any:
    async def shown(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "extensions": {"aether.peer": certificate_of(peer)}}, receive, send)

    return shown
