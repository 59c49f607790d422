"""`aether cluster`: make, look at and remove clusters."""

import asyncio
from pathlib import Path
from typing import Any

import click

from aether_core.bootstrap import STEPS, Progress, bootstrap, clusters_here, destroy
from aether_core.cli.main import Session, json_option, pass_session
from aether_core.cli.show import Live, Output, confirm
from aether_core.clock import SystemClock


@click.group()
def cluster() -> None:
    """Make, look at and remove clusters."""


@cluster.command("bootstrap")
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The cluster.toml to make.",
)
@json_option
@pass_session
def bootstrap_command(session: Session, config_path: Path) -> None:
    """Make the cluster that FILE describes, in twelve steps. Run again, it goes on."""
    display = _StepDisplay(session.out)
    work = asyncio.run(
        bootstrap(config_path, session.settings, SystemClock(), display.show, session.hooks)
    )
    urls = [f"http://{p.address}:{p.ports.ingress}" for p in work.peers.peers]
    if session.out.is_json:
        session.out.line("cluster", {"name": work.name, "nodes": work.nodes, "ingress": urls})
        return
    session.out.say(f"\ncluster '{work.name}' is ready: {', '.join(urls)}")
    session.out.say("next: aether artifact upload FILE, then aether deploy blueprint.toml")


@cluster.command("status")
@json_option
@pass_session
def status_command(session: Session) -> None:
    """Show the cluster and its nodes."""

    async def ask() -> Any:
        async with session.client() as client:
            return await client.get("/v1/cluster")

    found = asyncio.run(ask())
    if session.out.is_json:
        session.out.document("cluster", found)
        return
    head = found["cluster"]
    click.echo(
        f"cluster {head['name']}: provider {head['provider']}, {len(found['nodes'])} nodes, "
        f"leader {found['leader'] or 'none'}, {found['slices']} slices, "
        f"active deployments: {', '.join(found['active_deployments']) or 'none'}"
    )
    show_nodes(session.out, found["nodes"])


@cluster.command("list")
@json_option
@pass_session
def list_command(session: Session) -> None:
    """List the clusters that were made from this computer, with their machines."""
    found = asyncio.run(clusters_here(session.settings))
    if session.out.is_json:
        session.out.document("clusters", {"clusters": found})
        return
    session.out.table(
        ["name", "provider", "machines", "running"],
        [[c["name"], c["provider"], c["machines"], c["running"]] for c in found],
    )


@cluster.command("destroy")
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_session
def destroy_command(session: Session, name: str, yes: bool) -> None:
    """Remove the cluster NAME: its machines, all they hold, and its context."""
    confirm(f"Remove cluster '{name}' and everything it holds?", yes=yes)
    machines = asyncio.run(destroy(name, session.settings))
    if session.out.is_json:
        session.out.document("destroyed", {"name": name, "machines": [m.id for m in machines]})
        return
    click.echo(f"cluster '{name}' removed: {len(machines)} machines, nothing is left")


def show_nodes(out: Output, nodes: list[dict[str, Any]]) -> None:
    """Print the nodes as a table."""
    out.table(
        ["node", "state", "live", "role", "address", "api", "ingress", "instances", "why"],
        [
            [
                node["id"] + (" *" if node["is_leader"] else ""),
                node["state"],
                "yes" if node["is_live"] else "gone",
                "core" if node["is_core"] else "worker",
                node["address"],
                node["ports"]["api"],
                node["ports"]["ingress"],
                f"{node['ready']}/{node['instances']}",
                _why(node),
            ]
            for node in nodes
        ],
    )


def _why(node: dict[str, Any]) -> str:
    if not node["is_live"]:
        return "its lease ran out: the agent or its connection to the others is gone"
    why: str = node["ingress_error"] or node["why"]
    return why


class _StepDisplay:
    """Shows bootstrap's steps: changing in place on a terminal, a line each elsewhere."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._live = Live(out)

    def show(self, progress: Progress) -> None:
        if self._out.is_json:
            self._out.line("step", vars(progress))
            return
        head = f"{progress.step:>2}/{len(STEPS)} {progress.name:<32}"
        if progress.state == "running":
            self._live.show([f"   {head} ..."])
            return
        mark = "✓" if progress.state == "done" else "✗"
        note = f"  {progress.note}" if progress.note else ""
        self._live.settle(f" {mark} {head} {progress.seconds:6.2f} s{note}")
