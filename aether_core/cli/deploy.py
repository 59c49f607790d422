"""`aether deploy` and `aether undeploy`: what runs, and how it comes to run."""

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import click

from aether_core.blueprint import read_blueprint
from aether_core.cli.main import Session, json_option, pass_session
from aether_core.cli.show import Live, confirm, size
from aether_core.client import Client, path_of
from aether_core.config import resolve
from aether_core.errors import AetherError, RolledBack, WaitTimedOut

POLL_S = 0.25
OVER = ("COMPLETED", "FAILED", "ROLLED_BACK")


class FileOrVerb(click.Group):
    """`deploy status` is a verb; anything else after `deploy` is the FILE of a deployment."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        words = [arg for arg in args if not arg.startswith("-")]
        if words and words[0] not in self.commands:
            args = ["file", *args]
        return super().parse_args(context, args)


@click.group(cls=FileOrVerb, subcommand_metavar="FILE [OPTIONS] | COMMAND")
def deploy() -> None:
    """Deploy the blueprint in FILE, or see how deployments go.

    \b
    aether deploy blueprint.toml --strategy immediate
    aether deploy status
    """


@deploy.command("file", hidden=True)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--strategy", help="Instead of the blueprint's.")
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing.")
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@click.option("--timeout", "timeout_s", type=float, help="Stop watching after so many seconds.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_session
def deploy_file(
    session: Session,
    file: Path,
    strategy: str | None,
    dry_run: bool,
    detach: bool,
    timeout_s: float | None,
    yes: bool,
) -> None:
    """Deploy the blueprint in FILE."""

    async def go() -> None:
        wish = {"blueprint": await _document(file), "strategy": strategy}
        async with session.client() as client:
            planned = await client.post("/v1/plans", wish)
            if session.out.is_json:
                session.out.line("plan", planned)
            else:
                _show_plan(planned)
            if dry_run:
                return
            confirm("Deploy this?", yes=yes or not _asks(planned))
            wish["revision"] = planned["plan"]["revision"]
            begun = await client.post("/v1/deployments", wish)
            if detach:
                _let_go(session, begun)
            else:
                await watch(session, client, begun["id"], timeout_s)

    asyncio.run(go())


@deploy.command()
@click.argument("name", required=False)
@click.option("--watch", "is_watching", is_flag=True, help="Go on until it is over.")
@json_option
@pass_session
def status(session: Session, name: str | None, is_watching: bool) -> None:
    """Show a deployment: NAME, or the only active one, or the last."""

    async def go() -> None:
        async with session.client() as client:
            found = await client.get("/v1/deployments/current", name=name)
            if is_watching:
                await watch(session, client, found["deployment"]["id"], None)
            elif session.out.is_json:
                session.out.document("deployment", found)
            else:
                _show_deployment(session, found)

    asyncio.run(go())


@deploy.command("list")
@json_option
@pass_session
def list_command(session: Session) -> None:
    """List all deployments."""

    async def ask() -> Any:
        async with session.client() as client:
            return await client.get("/v1/deployments")

    found = asyncio.run(ask())
    if session.out.is_json:
        session.out.document("deployments", found)
        return
    titles = ["id", "blueprint", "version", "strategy", "state", "since", "by", "why"]
    session.out.table(titles, [[d[t] for t in titles] for d in found["deployments"]])


@click.command()
@click.argument("name")
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_session
def undeploy(session: Session, name: str, detach: bool, yes: bool) -> None:
    """Remove the blueprint NAME: its routes, then its instances."""
    confirm(f"Remove blueprint '{name}' and all its instances?", yes=yes)

    async def go() -> None:
        async with session.client() as client:
            begun = await client.delete(path_of("v1", "blueprints", name))
            if detach:
                _let_go(session, begun)
            else:
                await watch(session, client, begun["id"], None)

    asyncio.run(go())


def _let_go(session: Session, begun: dict[str, Any]) -> None:
    session.out.say(f"deployment '{begun['id']}' goes on: aether deploy status {begun['id']}")
    if session.out.is_json:
        session.out.line("deployment", begun)


async def watch(session: Session, client: Client, name: str, timeout_s: float | None) -> None:
    """Show a deployment until it is over. Errors: AetherError with the cause when it failed."""
    try:
        async with asyncio.timeout(timeout_s):
            found = await _follow(session, client, name)
    except TimeoutError:
        raise WaitTimedOut(
            f"deployment '{name}' is not over after {timeout_s:g} s; it goes on",
            hint=f"aether deploy status {name}",
        ) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        session.out.say(f"stopped watching; '{name}' goes on: aether deploy status {name}")
        raise
    deployment = found["deployment"]
    if deployment["state"] == "COMPLETED":
        return
    why = deployment["history"][-1]["why"]
    kind = RolledBack if deployment["state"] == "ROLLED_BACK" else AetherError
    logs = "".join(_last_words(failure) for failure in deployment["failures"])
    raise kind(f"deployment '{name}' is {deployment['state']}: {why}{logs}")


async def _follow(session: Session, client: Client, name: str) -> Any:
    live, told = Live(session.out), 0
    while True:
        found = await client.get("/v1/deployments/current", name=name)
        deployment = found["deployment"]
        for move in deployment["history"][told:]:
            if session.out.is_json:
                session.out.line("move", {"deployment": name, **move})
            else:
                live.settle(f" {move['at'][11:23]}  {move['state']:<12} {move['why']}")
        told = len(deployment["history"])
        if deployment["state"] in OVER:
            if session.out.is_json:
                session.out.line("deployment", found)
            return found
        live.show([_fleet_line(fleet) for fleet in found["fleets"]])
        await asyncio.sleep(POLL_S)


async def _document(file: Path) -> dict[str, Any]:
    """Return the blueprint as JSON, checked here where the lines are known."""
    read_blueprint(file)
    document = tomllib.loads(file.read_text())

    async def keep(path: str) -> str:
        return f"${{secrets:{path}}}"  # The nodes look secrets up, not we.

    resolved: dict[str, Any] = await resolve(document, keep, where=str(file))
    return resolved


def _asks(planned: dict[str, Any]) -> bool:
    """Return whether the plan takes something away for good, which is worth a question."""
    return any(change["new"] is None for change in planned["plan"]["changes"])


def _show_plan(planned: dict[str, Any]) -> None:
    plan = planned["plan"]
    click.echo(
        f"plan for {plan['blueprint']} {plan['version']} "
        f"(strategy {planned['strategy']}, revision {plan['revision']})"
    )
    for fleet, nodes in plan["starts"].items():
        click.echo(f"  + start {len(nodes)} of {fleet} on {', '.join(nodes)}")
    for fleet, nodes in plan["stops"].items():
        click.echo(f"  - stop  {len(nodes)} of {fleet} on {', '.join(nodes)}")
    for fleet in plan["keeps"]:
        click.echo(f"  = keep  {fleet}")
    for route in plan["routes"]:
        click.echo(f"    route {route['host']}{route['prefix']} -> {route['slice']}")
    for load in plan["peak"]:
        reserved, capacity = load["reserved"], load["capacity"]
        click.echo(
            f"    {load['node']}: at most {load['instances']} instances, "
            f"{reserved['cpu']:g} of {capacity['cpu']:.3g} cores, "
            f"{size(reserved['memory_bytes'])} of {size(capacity['memory_bytes'])} reserved"
        )


def _show_deployment(session: Session, found: dict[str, Any]) -> None:
    deployment = found["deployment"]
    click.echo(
        f"{deployment['id']}: {deployment['blueprint']} {deployment['version']}, "
        f"strategy {deployment['strategy']}, {deployment['state']} since {deployment['since'][:19]}"
    )
    for move in deployment["history"]:
        click.echo(f"  {move['at'][11:23]}  {move['state']:<12} {move['why']}")
    for failure in deployment["failures"]:
        click.echo(_last_words(failure).lstrip("\n"))
    session.out.table(
        ["slice", "version", "role", "ready", "share"],
        [
            [
                fleet["slice"],
                fleet["version"],
                fleet["role"],
                f"{fleet['ready']}/{fleet['wanted']}",
                f"{fleet['share_bp'] / 100:g} %",
            ]
            for fleet in found["fleets"]
        ],
    )


def _fleet_line(fleet: dict[str, Any]) -> str:
    return (
        f"   {fleet['slice']:<20} {fleet['version']:<12} {fleet['role']:<4} "
        f"{fleet['ready']} of {fleet['wanted']} ready, {fleet['share_bp'] / 100:g} % of requests"
    )


def _last_words(failure: dict[str, Any]) -> str:
    head = f"\ninstance '{failure['id']}' on '{failure['node']}': {failure['why']}; it wrote last:"
    lines = failure["log_tail"] or ["(nothing)"]
    return head + "".join(f"\n  | {line}" for line in lines)
