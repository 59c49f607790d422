"""`aether deploy` and `aether undeploy`: what runs, and how it comes to run."""

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import click

from aether_core.blueprint import read_blueprint
from aether_core.cli.main import Session, json_option, pass_session
from aether_core.cli.progress import show_deployment, show_plan, watch
from aether_core.cli.rollout import complete, promote, rollback, variant
from aether_core.cli.show import confirm
from aether_core.client import path_of
from aether_core.config import resolve


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
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the strategy, as in [strategy]: -o stage_s=30 -o 'stages=[10, 100]'.",
)
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
    options: tuple[str, ...],
    dry_run: bool,
    detach: bool,
    timeout_s: float | None,
    yes: bool,
) -> None:
    """Deploy the blueprint in FILE."""

    async def go() -> None:
        wish = {
            "blueprint": await _document(file),
            "strategy": strategy,
            "options": _options(options),
        }
        async with session.client() as client:
            planned = await client.post("/v1/plans", wish)
            if session.out.is_json:
                session.out.line("plan", planned)
            else:
                show_plan(planned)
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
                show_deployment(session.out, found)

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


for verb in (promote, rollback, complete, variant):
    deploy.add_command(verb)


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


def _options(words: tuple[str, ...]) -> dict[str, Any]:
    """Read KEY=VALUE as a line of TOML; a value that is no TOML is taken as text."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise click.UsageError(f"'{word}' is not KEY=VALUE")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value
    return found
