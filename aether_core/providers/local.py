"""Machines that are processes on this computer: for a laptop, for tests, for learning.

A machine is a directory and everything that runs in it: the node agent and what the agent starts.
All else is the real thing: an etcd quorum, Envoys, mTLS.
"""

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import psutil

from aether_core.boot import write_private
from aether_core.drivers import (
    API_VERSION,
    Balancer,
    Capabilities,
    Certificates,
    Machine,
    MachineSpec,
    MachineState,
    ProviderContext,
)
from aether_core.errors import NotFound, ProviderError, Refused
from aether_core.model import NodeId, Ports
from aether_core.process import machine_environment, spawn

LOOPBACK = "127.0.0.1"
MACHINE_FILE = "machine.json"
GONE_WITHIN_S = 10.0
SECRET_PREFIX = "AETHER_SECRET_"  # noqa: S105  the beginning of variables' names


class LocalCompute:
    """`drivers.Compute` over directories `<root>/<node>`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def check(self, specs: Sequence[MachineSpec]) -> None:
        _refuse_shared_ports(specs)
        for spec in specs:
            if not list(_processes(self._root / spec.node)):
                _refuse_busy_ports(spec.ports)

    async def create(self, spec: MachineSpec) -> Machine:
        directory = self._root / spec.node
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, content in spec.files.items():
            write_private(directory / path, content)
        machine = {"node": spec.node, "cluster": spec.cluster, "labels": dict(spec.labels)}
        write_private(directory / MACHINE_FILE, json.dumps(machine, indent=2).encode())
        if not any(_is_agent(process, directory) for process in _processes(directory)):
            _start_agent(directory)
        return _machine(directory)

    async def list(self, cluster: str) -> list[Machine]:
        machines = [_machine(path.parent) for path in sorted(self._root.glob(f"*/{MACHINE_FILE}"))]
        return [machine for machine in machines if machine.labels.get("cluster") == cluster]

    async def delete(self, machine: Machine) -> None:
        directory = self._root / machine.node
        _end_all(directory)
        shutil.rmtree(directory, ignore_errors=False) if directory.exists() else None


class LocalSecrets:
    """`drivers.Secrets` over this process's environment: `cluster/secret` is
    AETHER_SECRET_CLUSTER_SECRET."""

    async def get(self, path: str) -> str:
        name = SECRET_PREFIX + "".join(c if c.isalnum() else "_" for c in path).upper()
        try:
            return os.environ[name]
        except KeyError:
            raise NotFound(
                f"secret '{path}' not found: the environment variable {name} is not set",
                hint=f"export {name}=...",
            ) from None


class LocalDiscovery:
    """`drivers.Discovery`: the directories are the label index."""

    def __init__(self, compute: LocalCompute) -> None:
        self._compute = compute

    async def peers(self, cluster: str) -> list[Machine]:
        return await self._compute.list(cluster)


class LocalProvider:
    """`[cloud] provider = "local"`. Takes no region and no instance type."""

    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(shares_host=True)

    def __init__(self, context: ProviderContext) -> None:
        compute = LocalCompute(context.state_dir / "nodes")
        self.compute = compute
        self.secrets = LocalSecrets()
        self.discovery = LocalDiscovery(compute)
        self.balancer: Balancer | None = None
        self.certificates: Certificates | None = None


def _machine(directory: Path) -> Machine:
    about = json.loads((directory / MACHINE_FILE).read_bytes())
    is_running = any(_is_agent(process, directory) for process in _processes(directory))
    return Machine(
        id=f"local/{about['cluster']}/{about['node']}",
        node=NodeId(about["node"]),
        address=LOOPBACK,
        state=MachineState.RUNNING if is_running else MachineState.STOPPED,
        labels=about["labels"],
    )


def _start_agent(directory: Path) -> None:
    (directory / "logs").mkdir(exist_ok=True)
    spawn(
        [sys.executable, "-m", "aether_core.agent", str(directory)],
        env=machine_environment() | _slice_secrets(),
        cwd=directory,
        log_path=directory / "logs" / "agent.log",
    )


def _refuse_shared_ports(specs: Sequence[MachineSpec]) -> None:
    taken: dict[int, NodeId] = {}
    for spec in specs:
        for name, port in asdict(spec.ports).items():
            if taken.setdefault(port, spec.node) != spec.node:
                other = taken[port]
                raise Refused(
                    f"port {port} ([network] {name}) of '{spec.node}' is one of '{other}' too",
                    hint="the ports of [network] must lie less than 10 apart, or far away",
                )


def _slice_secrets() -> dict[str, str]:
    """Return the secrets that slices may ask for; the cluster's own comes in the boot file."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(SECRET_PREFIX) and name != SECRET_PREFIX + "CLUSTER_SECRET"
    }


def _refuse_busy_ports(ports: Ports) -> None:
    for name, port in asdict(ports).items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                key = f"[network] {name}"
                raise Refused(
                    f"port {port} ({key}) cannot be used: {error.strerror or error}",
                    hint=f"stop what listens there ({_listener(port)}) or choose another {key}",
                ) from error


def _listener(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port:
                name = psutil.Process(connection.pid).name() if connection.pid else "unknown"
                return f"{name}, pid {connection.pid}"
    except psutil.Error:
        pass  # Only a courtesy: other users' processes are not ours to see.
    return "unknown to us"


def _processes(directory: Path) -> Iterator[psutil.Process]:
    """Yield the machine's processes: those that work inside its directory."""
    inside = str(directory)
    for process in psutil.process_iter():
        try:
            cwd = process.cwd()
            is_inside = cwd == inside or cwd.startswith(inside + os.sep)
            if is_inside and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue  # Ended meanwhile, or another user's.


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _is_agent(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.cmdline()[1:] == ["-m", "aether_core.agent", str(directory)]
    except psutil.Error:
        return False


def _end_all(directory: Path) -> None:
    """Kill everything that runs in the machine, the agent first, as a power switch would."""
    while processes := list(_processes(directory)):
        for process in sorted(processes, key=lambda p: not _is_agent(p, directory)):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        _, left = psutil.wait_procs(processes, timeout=GONE_WITHIN_S)
        # One that has ended and whose parent did not ask yet is gone for us.
        alive = [process for process in left if not _is_zombie(process)]
        if alive:
            pids = ", ".join(str(process.pid) for process in alive)
            raise ProviderError(f"machine in '{directory}' not removed: pid {pids} does not end")
