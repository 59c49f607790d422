"""Ports for what a test starts."""

import socket

from aether_core.model import Ports


def free_port() -> int:
    """Return a port of this computer that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports() -> Ports:
    """Return the ports of a node."""
    return Ports(*(free_port() for _ in range(6)))
