"""`aether plugin`: see what is installed."""

import click

from aether_core.cli.main import Session, json_option, pass_session
from aether_core.plugins import inventory


@click.group()
def plugin() -> None:
    """See what is installed."""


@plugin.command("list")
@click.option("-v", "--verbose", is_flag=True, help="With the tracebacks of broken ones.")
@json_option
@pass_session
def list_command(session: Session, verbose: bool) -> None:
    """List every plugin: where it comes from, what it provides, and what is wrong with it."""
    found = inventory(session.hooks)
    if session.out.is_json:
        session.out.document("plugins", {"plugins": [vars(line) for line in found]})
        return
    session.out.table(
        ["name", "kind", "distribution", "version", "state", "provides"],
        [[p.name, p.kind, p.distribution, p.version, p.state, p.why or p.provides] for p in found],
    )
    for line in found:
        if verbose and line.details:
            click.echo(f"\n{line.name}:\n{line.details}")
