"""`aether token`: who may talk to the cluster."""

import asyncio
import re
from typing import Any

import click

from aether_core.cli.main import Session, json_option, pass_session
from aether_core.client import path_of

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.group()
def token() -> None:
    """Say who may talk to the cluster."""


@token.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["viewer", "operator", "admin"]),
    required=True,
    help="A viewer reads, an operator deploys too, an admin may do all.",
)
@click.option("--expires-in", help="Such as 12h or 30d; without it, never.")
@json_option
@pass_session
def create(session: Session, name: str, role: str, expires_in: str | None) -> None:
    """Make a token for NAME. It is shown once, here."""
    body = {"name": name, "role": role, "expires_in_s": _seconds(expires_in)}

    async def ask() -> Any:
        async with session.client() as client:
            return await client.post("/v1/tokens", body)

    made = asyncio.run(ask())
    if session.out.is_json:
        session.out.document("token", made)
        return
    session.out.say(f"token {made['id']} for {name}, {role}; it is not shown again:")
    click.echo(made["token"])


@token.command("list")
@json_option
@pass_session
def list_command(session: Session) -> None:
    """List the tokens, without what proves them."""

    async def ask() -> Any:
        async with session.client() as client:
            return await client.get("/v1/tokens")

    found = asyncio.run(ask())
    if session.out.is_json:
        session.out.document("tokens", found)
        return
    session.out.table(
        ["id", "name", "role", "created", "expires"],
        [
            [t["id"], t["name"], t["role"], t["created_at"][:19], (t["expires_at"] or "never")[:19]]
            for t in found["tokens"]
        ],
    )


@token.command()
@click.argument("identity", metavar="ID")
@json_option
@pass_session
def revoke(session: Session, identity: str) -> None:
    """End the token ID."""

    async def ask() -> Any:
        async with session.client() as client:
            return await client.delete(path_of("v1", "tokens", identity))

    found = asyncio.run(ask())
    if session.out.is_json:
        session.out.document("revoked", found)
        return
    click.echo(f"token {identity} revoked")


def _seconds(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise click.UsageError(f"'{text}' is not a time: use 30m, 12h or 30d")
    return int(match[1]) * UNITS_S[match[2]]
