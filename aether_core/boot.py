"""What a new node is told, in one module: who writes these files and who reads them agree.

`boot.json` comes with the machine and holds the cluster secret; `peers.json` comes later, when the
bootstrap knows every machine's address.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aether_core.errors import AetherError, IntegrityError
from aether_core.model import NodeId, Ports, Resources, decode, encode

BOOT_FILE = "boot.json"
PEERS_FILE = "peers.json"


@dataclass(frozen=True)
class Boot:
    """A node before it knows anybody else."""

    cluster: str
    node: NodeId
    provider: str
    ports: Ports
    bind: str  # The address its servers listen on: loopback when all nodes share a host.
    is_core: bool
    cluster_secret: str = field(repr=False)
    proxy_threads: int = 0  # 0: one per core.
    #: What the node may promise to instances; None: all that the machine has.
    capacity: Resources | None = None
    #: Where etcd and Envoy are; None: etcd in PATH, Envoy from its wheel.
    etcd_path: str | None = None
    envoy_path: str | None = None
    log_level: str = "INFO"
    #: Plugins' tables of cluster.toml, their secrets in place.
    tables: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Peer:
    """A node of the cluster, as the others reach it."""

    node: NodeId
    address: str
    ports: Ports
    is_core: bool
    machine: str


@dataclass(frozen=True)
class Peers:
    """All nodes that the cluster begins with."""

    peers: tuple[Peer, ...]

    def of(self, node: NodeId) -> Peer:
        """Return the entry of `node`. Errors: IntegrityError."""
        for peer in self.peers:
            if peer.node == node:
                return peer
        raise IntegrityError(f"node '{node}' is not among the peers it was told")


def read_boot(data_dir: Path) -> Boot:
    """Return what the machine was made with. Errors: AetherError, IntegrityError."""
    path = data_dir / BOOT_FILE
    try:
        return decode(Boot, path.read_bytes())
    except FileNotFoundError:
        raise AetherError(
            f"'{data_dir}' is not a node's data directory: no {BOOT_FILE}",
            hint="nodes are made by `aether cluster bootstrap`",
        ) from None


def read_peers(data_dir: Path) -> Peers | None:
    """Return the peers this node was told, None when it waits for them."""
    try:
        return decode(Peers, (data_dir / PEERS_FILE).read_bytes())
    except FileNotFoundError:
        return None


def write_peers(data_dir: Path, peers: Peers) -> None:
    """Keep the peers for every later start of the agent."""
    write_private(data_dir / PEERS_FILE, encode(peers))


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all, on disk when this returns."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def pretty(value: object) -> bytes:
    """Return a record as JSON for people to read."""
    return json.dumps(json.loads(encode(value)), indent=2, sort_keys=True).encode()
