"""The node agent, `python -m aether_core.agent DIR`: a process whose body is a list of loops.

What serves requests (Envoy, instances) and what keeps state (etcd) are processes of their own: when
the agent is killed they go on, and the next agent takes them over.
"""

import asyncio
import os
import shutil
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvloop
from loguru import logger

from aether_core import __version__, certs, etcd, keys, logs, plugins
from aether_core.api.app import create_app
from aether_core.artifacts import fetch, replicate
from aether_core.blobs import Blobs
from aether_core.boot import Boot, read_boot, read_peers
from aether_core.client import PeerClient
from aether_core.clock import SystemClock
from aether_core.config import resolve
from aether_core.deployment import Deployment
from aether_core.drivers import ProviderContext
from aether_core.election import RETRY_S, Presence, Term, campaign, changed_or
from aether_core.envoy import World
from aether_core.errors import AetherError
from aether_core.hookspecs import DeploymentMoved
from aether_core.ingress import Ingress, allow_watches
from aether_core.instances import Surroundings
from aether_core.leader import Leader
from aether_core.model import (
    Assignment,
    Fleet,
    IngressStatus,
    InstanceSpec,
    InstanceStatus,
    NodeRecord,
    NodeStatus,
    RouteTable,
)
from aether_core.node import Node
from aether_core.plugins import Hooks
from aether_core.process import load_child, machine_capacity, save_child, spawn, wait_ended
from aether_core.reconcile import Workload
from aether_core.serve import serve
from aether_core.statuses import replace_own
from aether_core.store import put
from aether_core.store_etcd import EtcdStore
from aether_core.traffic import TrafficStatus

RESTART_FIRST_S, RESTART_LAST_S = 0.2, 10.0
# A certificate is looked at this often; it is renewed at half of its seven days.
CERTIFICATE_CHECK_S = 60.0
# After every Envoy has turned away, what was sent the moment before may still be on its way.
SETTLE_S = 0.05
IDLE_POLL_S = 0.05
TRAFFIC_S = 1.0
RELOAD_S = 2.0
#: What a change of leads to another rendering of Envoy's documents.
INGRESS_FAMILIES = (
    keys.ROUTES,
    keys.FLEETS,
    keys.INSTANCES,
    keys.INSTANCE_STATUSES,
    keys.NODES,
)
PREPARED_MARK = ".prepared"


async def run(data_dir: Path) -> None:
    """Be a node until SIGTERM. Errors: AetherError when the node cannot begin."""
    agent = await _make(data_dir)
    async with asyncio.TaskGroup() as loops:
        _stop_on_sigterm(loops)
        loops.create_task(supervise("api", agent.answer))
        await agent.node.joined.wait()
        await agent.join()
        for name, loop in agent.loops():
            loops.create_task(supervise(name, loop))


async def supervise(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop for ever: one that ends or fails begins again, later each time it fails soon."""
    clock, delay_s = SystemClock(), RESTART_FIRST_S
    while True:
        began_s = clock.now_s()
        try:
            await loop()
        except Exception as error:  # noqa: BLE001  One loop's defect must not stop the others.
            is_expected = isinstance(error, AetherError)
            logger.opt(exception=None if is_expected else error).error("{} failed: {}", name, error)
        if clock.now_s() - began_s > RESTART_LAST_S:
            delay_s = RESTART_FIRST_S
        await clock.sleep(delay_s)
        delay_s = min(RESTART_LAST_S, delay_s * 2)


@dataclass
class Agent:
    """The node, and what only its loops share."""

    node: Node
    authority: certs.Authority
    server_tls: ssl.SSLContext
    client_tls: ssl.SSLContext
    etcd_program: Path | None
    presence: Presence = field(init=False)
    workload: Workload = field(init=False)

    def loops(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """Return what a node does, in the order in which it begins."""
        node, store = self.node, self.node.joined_store()
        member = [("etcd", self.keep_etcd)] if node.boot.is_core else []
        return [
            *member,
            ("ingress", self.keep_ingress),
            ("mirror", partial(node.mirror.follow, store, keys.ROOT)),
            ("presence", partial(self.presence.hold, self.announce)),
            ("election", self.stand),
            ("reconcile", self.workload.reconcile),
            ("statuses", self.workload.publish),
            ("traffic", self.publish_traffic),
            ("artifacts", partial(replicate, node)),
            ("certificates", self.renew_certificates),
        ]

    async def answer(self) -> None:
        """The API."""
        boot = self.node.boot
        await serve(create_app(self.node), boot.bind, boot.ports.api, self.server_tls)

    async def join(self) -> None:
        """Begin with what the peers file says."""
        node = self.node
        assert node.peers is not None, "joined means that the peers are known"
        self.write_certificates()
        cores = [peer for peer in node.peers.peers if peer.is_core]
        # The node's own member first: it is the nearest.
        cores.sort(key=lambda peer: peer.node != node.id)
        node.store = EtcdStore([etcd.client_url(c) for c in cores], self.client_tls, node.clock)
        self.presence = Presence(node.store, node.clock)
        self.workload = Workload(node, _surroundings(self))
        self.workload.adopt()

    async def keep_etcd(self) -> None:
        """Run this node's etcd member; return when it ended, to be run again."""
        node, directory = self.node, self.node.data_dir / "etcd"
        assert self.etcd_program is not None, "checked before joining"
        assert node.peers is not None, "joined"
        directory.mkdir(exist_ok=True, mode=0o700)
        child = load_child(node.data_dir / "etcd.json")
        if child is None:
            child = spawn(
                etcd.command(self.etcd_program, node.boot, node.peers, node.data_dir),
                env={"PATH": os.defpath},
                cwd=node.data_dir,
                log_path=node.data_dir / "logs" / "etcd.log",
            )
            save_child(node.data_dir / "etcd.json", child)
        await wait_ended(child)
        raise AetherError(f"etcd ended: see '{node.data_dir / 'logs' / 'etcd.log'}'")

    async def keep_ingress(self) -> None:
        """Run Envoy, and have it answer by what the store says."""
        ingress = self.node.ingress
        await ingress.start(self.world())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._raise_when_envoy_ends())
                group.create_task(self._follow_routes())
        finally:
            await ingress.close()

    async def _raise_when_envoy_ends(self) -> None:
        await self.node.ingress.wait_ended()
        raise AetherError("envoy ended")

    async def _follow_routes(self) -> None:
        node, mirror, loaded = self.node, self.node.mirror, -1
        key, status = keys.ingress_status(node.id), None
        with mirror.watching() as changed:
            while True:
                changed.clear()
                newest = mirror.newest(*INGRESS_FAMILIES)
                if newest != loaded and mirror.revision:
                    status = await self._load_routes(newest)
                    loaded = -1 if status.error else newest
                if status is not None and mirror.get(IngressStatus, key) != status:
                    await replace_own(node.joined_store(), mirror, [put(key, status)])
                # What was refused is tried again: it may have been Envoy's bad moment.
                await changed_or(changed, RELOAD_S if loaded == -1 else None)

    async def _load_routes(self, revision: int) -> IngressStatus:
        """Have Envoy answer by what the mirror holds, which is as of `revision`."""
        try:
            await self.node.ingress.apply(self.world())
        except AetherError as failure:
            logger.error("{}", failure)
            return IngressStatus(self.node.id, 0, failure.message)
        return IngressStatus(self.node.id, revision)

    async def publish_traffic(self) -> None:
        """Say what Envoy counted, once a second while a deployment goes on, for ever."""
        node, mirror, said = self.node, self.node.mirror, None
        while True:
            await node.clock.sleep(TRAFFIC_S)
            if not mirror.under(keys.ACTIVE):
                continue
            fleets = [fleet.id for fleet in mirror.all(Fleet, keys.FLEETS)]
            windows = await node.ingress.counted(fleets)
            if windows != said:
                status = TrafficStatus(node.id, node.clock.at(), windows)
                write = put(keys.traffic(node.id), status)
                if await replace_own(node.joined_store(), mirror, [write]):
                    said = windows

    def world(self) -> World:
        """Return what Envoy depends on, as the mirror has it."""
        node, mirror = self.node, self.node.mirror
        directory = node.data_dir / "certs"
        return World(
            cluster=node.boot.cluster,
            node=node.id,
            bind=node.boot.bind,
            live_dir=node.ingress.live_dir,
            ca_file=directory / certs.CA_FILE,
            certificate_pem=(directory / certs.CERT_FILE).read_text(),
            key_pem=(directory / certs.KEY_FILE).read_text(),
            nodes={record.id: record for record in mirror.all(NodeRecord, keys.NODES)},
            routes=mirror.get(RouteTable, keys.ROUTES) or RouteTable(),
            fleets=tuple(mirror.all(Fleet, keys.FLEETS)),
            assignments=tuple(mirror.all(Assignment, keys.INSTANCES)),
            statuses=tuple(mirror.all(InstanceStatus, keys.INSTANCE_STATUSES)),
            public_port=node.boot.ports.ingress,
            inner_port=node.boot.ports.inner,
            mesh_port=node.boot.ports.mesh,
        )

    async def announce(self, lease: int) -> None:
        """Say that this node lives, for as long as the lease does."""
        node = self.node
        status = NodeStatus(
            id=node.id,
            capacity=node.boot.capacity or machine_capacity(),
            agent_pid=os.getpid(),
            agent_version=__version__,
            started_at=node.clock.at(),
        )
        write = put(keys.node_status(node.id), status, lease=lease)
        with node.mirror.watching() as changed:
            # Else one that comes late, with a lease given up since, would take ours with its end.
            while not await replace_own(node.joined_store(), node.mirror, [write]):
                await changed_or(changed, RETRY_S)

    async def stand(self) -> None:
        """Stand for election, lead while elected."""
        node = self.node

        async def lead(term: Term) -> None:
            leader = Leader(
                node.joined_store(), node.mirror, node.clock, term, node.hooks.judge, self._moved
            )
            await leader.run()

        await campaign(node.joined_store(), node.mirror, self.presence, node.id, lead)

    def _moved(self, before: Deployment, after: Deployment) -> None:
        why = after.history[-1].why
        event = DeploymentMoved(after.id, after.blueprint, before.state, after.state, why)
        self.node.hooks.event(event)

    async def renew_certificates(self) -> None:
        """Replace the certificate at its half-life; connections that exist go on with the old."""
        node = self.node
        file = node.data_dir / "certs" / certs.CERT_FILE
        while True:
            await node.clock.sleep(CERTIFICATE_CHECK_S)
            if node.clock.at() >= certs.renew_at(file):
                self.write_certificates()
                await node.ingress.apply(self.world())
                logger.info("certificate renewed")

    def write_certificates(self) -> None:
        """Issue this node's certificate and have our own servers and clients use it.

        etcd reads the files anew for every connection; Envoy gets them as documents.
        """
        node, directory = self.node, self.node.data_dir / "certs"
        addresses = [node.peers.of(node.id).address] if node.peers else []
        now = node.clock.at()
        certs.write_node_certs(
            directory, self.authority, node=node.id, addresses=addresses, now=now
        )
        for context in (self.server_tls, self.client_tls):
            certs.load_node_certificate(context, directory)

    async def wait_idle(self, status: InstanceStatus) -> None:
        """Return when no Envoy sends the instance anything new and nothing is in flight."""
        node, mirror = self.node, self.node.mirror
        turned_away = mirror.newest(keys.INSTANCES)
        with mirror.watching() as changed:
            while not all(s.revision >= turned_away for s in self._live_ingresses()):
                await changed.wait()
                changed.clear()
        while True:
            await node.clock.sleep(SETTLE_S)
            if await node.ingress.active_requests(status.port) == 0:
                return
            await node.clock.sleep(IDLE_POLL_S)

    def _live_ingresses(self) -> list[IngressStatus]:
        mirror = self.node.mirror
        live = {status.id for status in mirror.all(NodeStatus, keys.NODE_STATUSES)}
        return [s for s in mirror.all(IngressStatus, keys.INGRESS_STATUSES) if s.node in live]


async def _make(data_dir: Path) -> Agent:
    boot, clock = read_boot(data_dir), SystemClock()
    (data_dir / "logs").mkdir(exist_ok=True)
    logs.set_up(data_dir / "logs" / "agent.log", boot.log_level)
    logger.info("agent {} of node '{}' begins, pid {}", __version__, boot.node, os.getpid())
    program = etcd.find(boot.etcd_path) if boot.is_core else None
    if program is not None:
        await etcd.check_version(program)
    allow_watches()
    authority = certs.authority(boot.cluster, boot.cluster_secret)
    peers, directory = read_peers(data_dir), data_dir / "certs"
    addresses = [peers.of(boot.node).address] if peers else []
    certs.write_node_certs(
        directory, authority, node=boot.node, addresses=addresses, now=clock.at()
    )
    client_tls = certs.client_context(directory)
    node = Node(
        boot=boot,
        data_dir=data_dir,
        clock=clock,
        client=PeerClient(client_tls),
        hooks=_hooks(boot),
        blobs=Blobs(data_dir / "artifacts"),
        ingress=Ingress(data_dir, clock, program=boot.envoy_path, threads=boot.proxy_threads),
        peers=peers,
    )
    if peers is not None:
        node.joined.set()
    return Agent(node, authority, certs.server_context(directory), client_tls, program)


def _hooks(boot: Boot) -> Hooks:
    """Load the plugins that listen; say in the log which of them cannot."""
    hooks = Hooks(tables=boot.tables)
    for line in hooks.plugins:
        if line.state != "ok":
            logger.warning("plugin '{}' is {}: {}", line.name, line.state, line.why)
    return hooks


def _surroundings(agent: Agent) -> Surroundings:
    node = agent.node
    context = ProviderContext(node.boot.cluster, node.data_dir)
    provider = plugins.build_driver("aether.providers", node.boot.provider, context)
    preparing: dict[str, asyncio.Lock] = {}

    async def resolve_env(env: dict[str, str]) -> dict[str, str]:
        resolved: dict[str, str] = await resolve(env, provider.secrets.get, where="env")
        return resolved

    async def prepare(spec: InstanceSpec, artifact: Path) -> Path:
        # One directory for all instances of an artifact; half-made ones are made again.
        directory = node.data_dir / "prepared" / f"{spec.sha256}-{spec.kind}"
        async with preparing.setdefault(spec.sha256, asyncio.Lock()):
            if not (directory / PREPARED_MARK).exists():
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir(parents=True)
                runtime = plugins.build_driver("aether.runtimes", spec.kind)
                with plugins.driver_errors(spec.kind):
                    await runtime.prepare(artifact, directory, spec)
                (directory / PREPARED_MARK).touch()
        return directory

    return Surroundings(
        directory=node.data_dir / "instances",
        clock=node.clock,
        mesh_url=f"http://127.0.0.1:{node.boot.ports.inner}",
        fetch=partial(fetch, node),
        prepare=prepare,
        runtime=partial(plugins.build_driver, "aether.runtimes"),
        resolve=resolve_env,
        wait_idle=agent.wait_idle,
        report=lambda status: agent.workload.report(status),  # noqa: PLW0108  Made after this.
    )


def _stop_on_sigterm(loops: asyncio.TaskGroup) -> None:
    task = asyncio.current_task()
    assert task is not None, "called inside the agent's task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def main() -> None:
    """Run the agent of the data directory given as the only argument."""
    data_dir = Path(sys.argv[1])
    try:
        uvloop.run(run(data_dir))
    except asyncio.CancelledError:
        logger.info("agent ends; etcd, Envoy and instances go on")
    except AetherError as error:
        logger.error("{}", error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
