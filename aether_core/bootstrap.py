"""The twelve steps from one TOML file to a cluster that answers, and back to nothing.

Every step may be run again: what exists is found and used. The journal says what a run meant to do
before it did it, so a second run can tell a user what is there.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aether_core import __version__, certs, etcd, plugins
from aether_core.boot import BOOT_FILE, Boot, Peer, Peers, write_private
from aether_core.client import PeerClient
from aether_core.clock import Clock
from aether_core.cluster_config import (
    ClusterConfig,
    plugin_tables,
    ports,
    read_cluster_config,
    resolve_config,
)
from aether_core.config import read_toml, validate
from aether_core.contexts import Context, remove_context, save_context
from aether_core.drivers import Machine, MachineSpec, MachineState, Provider, ProviderContext
from aether_core.errors import AetherError, NotFound, Refused, Unavailable, WaitTimedOut
from aether_core.ingress import check_envoy
from aether_core.journal import Journal
from aether_core.model import NodeId, Ports, Resources, Role, encode, to_plain
from aether_core.plugins import Hooks
from aether_core.process import machine_capacity
from aether_core.settings import Settings
from aether_core.token import new_token, record_of

# Each step ends after this long; on two busy cores a cluster of five needs a tenth of it.
STEP_TIMEOUT_S = 90.0
POLL_S = 0.05
CONFIG_FILE = "cluster.toml"


@dataclass
class Work:
    """One bootstrap while it goes on; each step fills in what the next ones need."""

    config_path: Path
    settings: Settings
    clock: Clock
    hooks: Hooks
    config: ClusterConfig = field(init=False)
    provider: Provider = field(init=False)
    journal: Journal = field(init=False)
    authority: certs.Authority = field(init=False)
    client: PeerClient = field(init=False)
    machines: list[Machine] = field(default_factory=list)
    peers: Peers = field(default_factory=lambda: Peers(()))
    token: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        return self.config.cluster.name

    @property
    def state_dir(self) -> Path:
        return cluster_dir(self.settings, self.name)

    @property
    def nodes(self) -> list[NodeId]:
        return [NodeId(f"node-{slot}") for slot in range(1, self.config.cluster.size + 1)]


@dataclass(frozen=True)
class Progress:
    """What `bootstrap` tells whoever watches: one before and one after each step."""

    step: int
    of: int
    name: str
    state: str  # running, done, failed
    seconds: float = 0.0
    note: str = ""


async def bootstrap(
    config_path: Path,
    settings: Settings,
    clock: Clock,
    show: Callable[[Progress], None],
    hooks: Hooks,
) -> Work:
    """Carry out the twelve steps. Errors: the step's own, with what exists as its hint."""
    work = Work(config_path, settings, clock, hooks)
    for number, (name, step) in enumerate(STEPS, start=1):
        show(Progress(number, len(STEPS), name, "running"))
        started_s = clock.now_s()
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                note = await step(work)
        except TimeoutError:
            error: AetherError = WaitTimedOut(f"'{name}' did not finish in {STEP_TIMEOUT_S:.0f} s")
            show(Progress(number, len(STEPS), name, "failed", clock.now_s() - started_s))
            raise await _with_remains(work, error) from None
        except AetherError as error:
            show(Progress(number, len(STEPS), name, "failed", clock.now_s() - started_s))
            raise await _with_remains(work, error) from error
        if hasattr(work, "journal"):
            work.journal.write("done", name)
        show(Progress(number, len(STEPS), name, "done", clock.now_s() - started_s, note))
    return work


async def check_configuration(work: Work) -> str:
    """Read the file, find its provider and the programs the nodes need, refuse busy ports."""
    work.config = read_cluster_config(work.config_path, work.hooks.config_tables)
    work.provider = build_provider(work.config, work.state_dir)
    if work.provider.capabilities.shares_host:
        await etcd.check_version(etcd.find(work.settings.etcd_path))
        await check_envoy(work.settings.envoy_path)
    await work.provider.compute.check(_machine_specs(work))
    work.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    work.journal = Journal(work.state_dir / "journal.jsonl", work.clock)
    _refuse_other_configuration(work)
    size, quorum = work.config.cluster.size, work.config.cluster.quorum
    return f"{size} nodes, {quorum} of them core, provider {work.config.cloud.provider}"


async def resolve_secrets(work: Work) -> str:
    work.config = await resolve_config(work.config, work.provider.secrets.get)
    return "cluster secret found"


async def issue_certificates(work: Work) -> str:
    """Derive the authority from the secret; nodes derive the same one by themselves."""
    secret = work.config.security.cluster_secret
    work.authority = certs.authority(work.name, secret)
    directory = work.state_dir / "certs"
    kept = directory / certs.CA_FILE
    if kept.exists() and kept.read_text() != work.authority.certificate_pem:
        raise Refused(
            f"cluster '{work.name}' exists with another secret",
            hint=f"use that one, or remove the cluster: aether cluster destroy {work.name}",
        )
    certs.write_node_certs(
        directory, work.authority, node=NodeId("bootstrap"), addresses=(), now=work.clock.at()
    )
    work.client = PeerClient(certs.client_context(directory))
    return "authority derived from the cluster secret"


async def provision_nodes(work: Work) -> str:
    """Make the machines that do not exist yet, all at once."""
    specs = _machine_specs(work, secret=work.config.security.cluster_secret)
    existing = {machine.node for machine in await work.provider.compute.list(work.name)}
    for spec in specs:
        work.journal.write("intent", f"machine {spec.node}")
    work.machines = list(await asyncio.gather(*(work.provider.compute.create(s) for s in specs)))
    for machine in work.machines:
        work.journal.write("done", f"machine {machine.node} is {machine.id}")
    return f"{len(work.machines) - len(existing)} made, {len(existing)} found"


async def start_nodes(work: Work) -> str:
    """Wait until every node's agent answers."""
    by_node = {machine.node: machine for machine in work.machines}
    work.peers = Peers(
        tuple(
            Peer(
                node=node,
                address=by_node[node].address,
                ports=_ports(work, slot),
                is_core=slot <= work.config.cluster.quorum,
                machine=by_node[node].id,
            )
            for slot, node in enumerate(work.nodes, start=1)
        )
    )
    await _each_node(work, lambda peer, status: status["node"] == peer.node)
    return f"{len(work.nodes)} agents answer"


async def discover_peers(work: Work) -> str:
    """Find the machines again by their label alone: what a node added later will rely on."""
    found = {machine.node for machine in await work.provider.discovery.peers(work.name)}
    missing, strange = set(work.nodes) - found, found - set(work.nodes)
    if missing or strange:
        raise Unavailable(
            f"discovery does not see the cluster as it is: missing {sorted(missing) or 'none'}, "
            f"unexpected {sorted(strange) or 'none'}"
        )
    return f"{len(found)} found by label"


async def form_consensus(work: Work) -> str:
    """Tell every node its peers; the core nodes start their members."""
    body = to_plain(work.peers)
    for peer in work.peers.peers:
        await work.client.post(peer, "/v1/bootstrap/join", body)
    await _each_node(work, lambda peer, status: status["has_peers"])
    return f"{sum(peer.is_core for peer in work.peers.peers)} members"


async def establish_quorum(work: Work) -> str:
    """Every node reads through a majority."""
    await _each_node(work, lambda peer, status: status["revision"] > 0)
    return "every node reads through a majority"


async def elect_leader(work: Work) -> str:
    statuses = await _each_node(work, lambda peer, status: bool(status["leader"]))
    return f"{statuses[0]['leader']} leads"


async def initialise_store(work: Work) -> str:
    """Write the cluster, its nodes and the first token, once."""
    token_path, now = work.state_dir / "admin-token", work.clock.at()
    if token_path.exists():  # Of a run that did not finish: the store may know it already.
        work.token = token_path.read_text()
        record = record_of(work.token, "bootstrap", Role.ADMIN, now=now)
    else:
        work.token, record = new_token("bootstrap", Role.ADMIN, now=now)
        write_private(token_path, work.token.encode())
    body = {
        "cluster": _cluster_record(work),
        "token": to_plain(record),
        "peers": to_plain(work.peers),
    }
    answer = await work.client.post(work.peers.peers[0], "/v1/bootstrap/init", body)
    return "written" if answer["written"] else "was there already"


async def set_up_artifacts(work: Work) -> str:
    statuses = await _each_node(work, lambda peer, status: status["artifacts_free_bytes"] > 0)
    free_gib = min(status["artifacts_free_bytes"] for status in statuses) / 2**30
    return f"{len(statuses)} stores, {free_gib:.0f} GiB free on the fullest"


async def verify_readiness(work: Work) -> str:
    """Every node is on duty and its ingress answers; then the context is worth keeping."""
    await _each_node(work, lambda peer, status: status["state"] == "ON_DUTY")
    for peer in work.peers.peers:
        await work.client.answers(f"http://{peer.address}:{peer.ports.ingress}/")
    endpoints = tuple(f"https://{p.address}:{p.ports.api}" for p in work.peers.peers)
    save_context(
        work.settings,
        Context(work.name, endpoints, work.authority.certificate_pem, work.token),
        make_current=True,
    )
    return f"{len(work.nodes)} of {len(work.nodes)} nodes on duty, context '{work.name}' saved"


#: In this order, with the names people see.
STEPS: tuple[tuple[str, Callable[[Work], Awaitable[str]]], ...] = (
    ("check configuration", check_configuration),
    ("resolve secrets", resolve_secrets),
    ("issue certificates", issue_certificates),
    ("provision nodes", provision_nodes),
    ("start nodes", start_nodes),
    ("discover peers", discover_peers),
    ("form consensus", form_consensus),
    ("establish quorum", establish_quorum),
    ("elect leader", elect_leader),
    ("initialise the store", initialise_store),
    ("set up the artifact repository", set_up_artifacts),
    ("verify readiness", verify_readiness),
)


def cluster_dir(settings: Settings, name: str) -> Path:
    """Return where this computer keeps what it knows of the cluster."""
    return settings.data_dir / "clusters" / name


def build_provider(config: ClusterConfig, state_dir: Path) -> Provider:
    """Load and build the provider that the configuration names."""
    context = ProviderContext(
        cluster=config.cluster.name,
        state_dir=state_dir,
        region=config.cloud.region,
        instance_type=config.cloud.instance_type,
    )
    name = config.cloud.provider
    provider: Provider = plugins.build_driver("aether.providers", name, context)
    return provider


async def clusters_here(settings: Settings) -> list[dict[str, Any]]:
    """Return the clusters made from this computer: name, provider, machines, how many run."""
    found = []
    for file in sorted((settings.data_dir / "clusters").glob(f"*/{CONFIG_FILE}")):
        config = _kept_config(file)
        machines = await build_provider(config, file.parent).compute.list(config.cluster.name)
        running = sum(machine.state == MachineState.RUNNING for machine in machines)
        found.append(
            {
                "name": config.cluster.name,
                "provider": config.cloud.provider,
                "machines": len(machines),
                "running": running,
            }
        )
    return found


def _kept_config(file: Path) -> ClusterConfig:
    """Read our copy of a configuration, without the tables of plugins, which may be gone."""
    document = read_toml(file)
    own = {
        key: table for key, table in document.values.items() if key in ClusterConfig.model_fields
    }
    return validate(replace(document, values=own), ClusterConfig)


async def destroy(name: str, settings: Settings) -> list[Machine]:
    """Remove every machine of the cluster, its context and its files; return the machines."""
    state_dir = cluster_dir(settings, name)
    if not (state_dir / CONFIG_FILE).exists():
        raise NotFound(
            f"cluster '{name}' was not made from this computer", hint="aether cluster list"
        )
    config = _kept_config(state_dir / CONFIG_FILE)
    provider = build_provider(config, state_dir)
    machines = await provider.compute.list(name)
    for machine in machines:
        await provider.compute.delete(machine)
    left = await provider.compute.list(name)
    if left:
        names = ", ".join(machine.id for machine in left)
        raise AetherError(f"cluster '{name}' not removed: {names} still exist", hint="run it again")
    remove_context(settings, name)
    shutil.rmtree(state_dir)
    return machines


async def _each_node(
    work: Work, is_done: Callable[[Peer, dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    """Ask every node for its status until `is_done` holds for it; return the last answers."""

    async def ask(peer: Peer) -> dict[str, Any]:
        while True:
            try:
                status: dict[str, Any] = await work.client.get(peer, "/v1/bootstrap/status")
                if status.get("error"):
                    raise AetherError(f"node '{peer.node}': {status['error']}")
                if is_done(peer, status):
                    return status
            except Unavailable:
                pass  # Not up yet; the step's time limit ends this.
            await work.clock.sleep(POLL_S)

    return list(await asyncio.gather(*(ask(peer) for peer in work.peers.peers)))


def _machine_specs(work: Work, *, secret: str | None = None) -> list[MachineSpec]:
    """Return the machines to make; without the secret they hold no files and only serve to ask."""
    shares_host = work.provider.capabilities.shares_host
    specs = []
    for slot, node in enumerate(work.nodes, start=1):
        is_core = slot <= work.config.cluster.quorum
        files = {}
        if secret is not None:
            boot = Boot(
                cluster=work.name,
                node=node,
                provider=work.config.cloud.provider,
                ports=_ports(work, slot),
                bind="127.0.0.1" if shares_host else "0.0.0.0",  # noqa: S104  VMs have a firewall.
                is_core=is_core,
                cluster_secret=secret,
                proxy_threads=1 if shares_host else 0,
                capacity=_host_fraction(len(work.nodes)) if shares_host else None,
                etcd_path=work.settings.etcd_path if shares_host else None,
                envoy_path=work.settings.envoy_path if shares_host else None,
                log_level=work.settings.log_level,
                tables=plugin_tables(work.config),
            )
            files[BOOT_FILE] = encode(boot)
        labels = {
            "cluster": work.name,
            "node": node,
            "role": "core" if is_core else "worker",
            "slot": str(slot),
        }
        specs.append(MachineSpec(work.name, node, slot, labels, _ports(work, slot), files))
    return specs


def _ports(work: Work, slot: int) -> Ports:
    return ports(work.config.network, slot, work.provider.capabilities.shares_host)


def _host_fraction(nodes: int) -> Resources:
    """Return what each of `nodes` on this one computer may promise."""
    whole = machine_capacity()
    return Resources(cpu=whole.cpu / nodes, memory_bytes=whole.memory_bytes // nodes)


def _cluster_record(work: Work) -> dict[str, Any]:
    return {
        "name": work.name,
        "provider": work.config.cloud.provider,
        "size": work.config.cluster.size,
        "quorum": work.config.cluster.quorum,
        "created_at": work.clock.at().isoformat(),
        "version": __version__,
    }


def _refuse_other_configuration(work: Work) -> None:
    """Keep a copy of the configuration; refuse to resume with a different one."""
    kept, given = work.state_dir / CONFIG_FILE, work.config_path.read_bytes()
    if kept.exists() and kept.read_bytes() != given:
        raise Refused(
            f"cluster '{work.name}' exists with another configuration: '{kept}' differs from "
            f"'{work.config_path}'",
            hint=f"use that file, or remove the cluster: aether cluster destroy {work.name}",
        )
    write_private(kept, given)


async def _with_remains(work: Work, error: AetherError) -> AetherError:
    """Add to the error what exists, and how to go on or to remove it."""
    if not hasattr(work, "journal"):
        return error  # Nothing has been made.
    work.journal.write("failed", error.message)
    machines = await work.provider.compute.list(work.name)
    exists = ", ".join(machine.id for machine in machines) or "no machine"
    again = f"aether cluster bootstrap --config {work.config_path}"
    remains = f"{exists} exists; go on: `{again}`; remove: `aether cluster destroy {work.name}`"
    error.hint = f"{error.hint}; {remains}" if error.hint else remains
    return error
