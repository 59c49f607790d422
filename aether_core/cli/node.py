"""`aether node`: look at nodes; be one."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from aether_core.cli.cluster import show_nodes
from aether_core.cli.main import Session, json_option, pass_session


@click.group()
def node() -> None:
    """Look at nodes; be one."""


@node.command("list")
@json_option
@pass_session
def list_command(session: Session) -> None:
    """List the nodes."""

    async def ask() -> Any:
        async with session.client() as client:
            return await client.get("/v1/nodes")

    found = asyncio.run(ask())
    if session.out.is_json:
        session.out.document("nodes", found)
        return
    show_nodes(session.out, found["nodes"])


@node.command()
@click.option(
    "--data-dir",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="The directory that the provider made for the node.",
)
def run(data_dir: Path) -> None:
    """Be the node whose data directory this is, until SIGTERM. Machines start this."""
    from aether_core import agent  # noqa: PLC0415  All of a node: not for `aether node list`.

    sys.argv = [sys.argv[0], str(data_dir)]
    agent.main()
