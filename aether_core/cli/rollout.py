"""`aether deploy promote|rollback|complete|variant`, `aether rollback`, `aether explain`."""

import asyncio
from typing import Any

import click

from aether_core.cli.main import Session, json_option, pass_session
from aether_core.cli.progress import verdict_of, watch
from aether_core.errors import RolledBack


@click.command()
@click.argument("name", required=False)
@click.option("--detach", is_flag=True, help="Do not wait for what comes of it.")
@json_option
@pass_session
def promote(session: Session, name: str | None, detach: bool) -> None:
    """Go on to the next stage now, without waiting for the judge. NAME: or the only active one."""
    _ask(session, {"what": "promote", "name": name}, detach=detach)


@click.command()
@click.argument("name", required=False)
@click.option("--detach", is_flag=True, help="Do not wait for what comes of it.")
@json_option
@pass_session
def rollback(session: Session, name: str | None, detach: bool) -> None:
    """Go back to the version that ran before. NAME: or the only active one."""
    _ask(session, {"what": "rollback", "name": name}, detach=detach, goes_back=True)


@click.command()
@click.argument("name", required=False)
@click.option("--winner", help="In an A/B test: the variant that stays.")
@click.option("--detach", is_flag=True, help="Do not wait for what comes of it.")
@json_option
@pass_session
def complete(session: Session, name: str | None, winner: str | None, detach: bool) -> None:
    """Give the new version all traffic and let the old one go. NAME: or the only active one."""
    body = {"what": "complete", "name": name, "keep": winner}
    _ask(session, body, detach=detach, goes_back=winner is not None)


@click.group()
def variant() -> None:
    """Change a running A/B test."""


@variant.command()
@click.argument("variant_name", metavar="VARIANT")
@click.argument("name", required=False)
@click.option("--detach", is_flag=True, help="Do not wait for what comes of it.")
@json_option
@pass_session
def remove(session: Session, variant_name: str, name: str | None, detach: bool) -> None:
    """End the test without VARIANT; the other one gets all traffic."""
    body = {"what": "rollback", "name": name, "remove": variant_name}
    _ask(session, body, detach=detach, goes_back=True)


@click.command()
@click.argument("name", required=False)
@json_option
@pass_session
def explain(session: Session, name: str | None) -> None:
    """Say why a deployment moved as it did, in words and numbers. NAME: or the last one."""

    async def ask() -> Any:
        async with session.client() as client:
            return await client.get("/v1/deployments/current", name=name)

    found = asyncio.run(ask())
    if session.out.is_json:
        session.out.document("explained", found)
        return
    deployment = found["deployment"]
    click.echo(
        f"{deployment['id']}: {deployment['blueprint']} {deployment['version']} by strategy "
        f"{deployment['strategy']}, {len(deployment['stages'])} stages, asked for by "
        f"{deployment['by']}; over by {deployment['deadline_at'][:19]} at the latest"
    )
    for move in deployment["history"]:
        stage = f"stage {move['stage'] + 1}" if deployment["stages"] else ""
        click.echo(f"  {move['at'][11:23]}  {stage:<8} {move['state']:<12} {move['why']}")
        _show_inputs(move["inputs"])
    if deployment["state"] == "PROMOTING":
        click.echo("  now:")
        _show_inputs(found["judgements"])


def _show_inputs(judgements: dict[str, Any]) -> None:
    for name, judgement in judgements.items():
        click.echo(f"      {name}: {verdict_of(judgement)}")
        for finding in judgement["findings"]:
            click.echo(f"        {_finding(finding)}")


def _finding(finding: dict[str, Any]) -> str:
    numbers = {key: finding[key] for key in ("old", "new", "effect", "low", "high")}
    shown = {key: "-" if value is None else f"{value:.4g}" for key, value in numbers.items()}
    return (
        f"{finding['metric']:<26} old {shown['old']}, new {shown['new']}, ratio "
        f"{shown['effect']} ({shown['low']} to {shown['high']}), e-value {finding['e_value']:.3g}: "
        f"{finding['verdict']}"
    )


def _ask(session: Session, body: dict[str, Any], *, detach: bool, goes_back: bool = False) -> None:
    """Send what is asked and show what comes of it; going back is success when it is asked for."""

    async def go() -> None:
        async with session.client() as client:
            before = await client.get("/v1/deployments/current", name=body["name"])
            asked = await client.post("/v1/deployments/ask", body)
            session.out.say(f"{asked['asked']} of '{asked['id']}' asked for")
            if session.out.is_json:
                session.out.line("asked", asked)
            if detach:
                return
            try:
                told = len(before["deployment"]["history"])
                await watch(session, client, asked["id"], None, told=told)
            except RolledBack:
                if not goes_back:
                    raise
                session.out.say(f"'{asked['id']}' is back at the version before")

    asyncio.run(go())
