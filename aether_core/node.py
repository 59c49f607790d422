"""What one node has: its boot file, its copy of the store, its doors to the rest of the cluster.

Made by the agent, handed to its loops and to the API. It holds no behaviour of its own.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aether_core import keys
from aether_core.boot import Boot, Peer, Peers
from aether_core.client import PeerClient
from aether_core.clock import Clock
from aether_core.errors import NoQuorum, NotFound, Unavailable
from aether_core.model import NodeId, NodeRecord
from aether_core.plugins import Hooks
from aether_core.store import Mirror
from aether_core.store_etcd import EtcdStore

if TYPE_CHECKING:
    from aether_core.blobs import Blobs
    from aether_core.ingress import Ingress
    from aether_core.leases import ExpiringLease

# Longer than a watch that broke needs to be noticed and to begin anew.
REACH_TIMEOUT_S = 10.0


@dataclass
class Node:
    """One node. `store` is None until it was told its peers."""

    boot: Boot
    data_dir: Path
    clock: Clock
    client: PeerClient
    hooks: Hooks
    blobs: "Blobs"
    ingress: "Ingress"
    mirror: Mirror = field(default_factory=Mirror)
    peers: Peers | None = None
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    store: EtcdStore | None = None
    request_lease: "ExpiringLease | None" = None
    audit_lease: "ExpiringLease | None" = None
    error: str = ""  # Why this node cannot do its part, for the bootstrap to show.

    @property
    def id(self) -> NodeId:
        return self.boot.node

    def joined_store(self) -> EtcdStore:
        """Return the store. Errors: NoQuorum while the node waits for its peers."""
        if self.store is None:
            raise NoQuorum(f"node '{self.id}' has not joined a cluster yet")
        return self.store

    async def fresh(self) -> Mirror:
        """Return the mirror, with all that was committed before this call.

        Errors: NoQuorum; Unavailable when the mirror does not hear of what was committed.
        """
        revision = await self.joined_store().revision()
        try:
            async with asyncio.timeout(REACH_TIMEOUT_S):
                await self.mirror.reach(revision)
        except TimeoutError:
            raise Unavailable(f"node '{self.id}' is behind the store; ask another") from None
        return self.mirror

    def peer(self, node: NodeId) -> Peer:
        """Return how to reach another node. Errors: NotFound."""
        record = self.mirror.get(NodeRecord, keys.node(node))
        if record is None:
            raise NotFound(f"node '{node}' not found")
        return Peer(record.id, record.address, record.ports, record.is_core, record.machine)
