"""`aether context`: choose between the clusters you know."""

import click

from aether_core.cli.main import Session, json_option, pass_session
from aether_core.contexts import (
    context_names,
    current_context,
    load_context,
    remove_context,
    use_context,
)


@click.group()
def context() -> None:
    """Choose between the clusters you know."""


@context.command("list")
@json_option
@pass_session
def list_command(session: Session) -> None:
    """List the contexts."""
    current = current_context(session.settings)
    known = [load_context(session.settings, name) for name in context_names(session.settings)]
    if session.out.is_json:
        lines = [{"name": one.name, "is_current": one.name == current} for one in known]
        session.out.document("contexts", {"contexts": lines})
        return
    session.out.table(
        ["name", "endpoints"],
        [[one.name + (" *" if one.name == current else ""), len(one.endpoints)] for one in known],
    )


@context.command()
@click.argument("name")
@json_option
@pass_session
def use(session: Session, name: str) -> None:
    """Make NAME the current one."""
    use_context(session.settings, name)
    if session.out.is_json:
        session.out.document("context", {"name": name})
        return
    click.echo(f"now talking to '{name}'")


@context.command()
@click.argument("name", required=False)
@json_option
@pass_session
def show(session: Session, name: str | None) -> None:
    """Show a context, without its token."""
    found = load_context(session.settings, name)
    if session.out.is_json:
        shown = {"name": found.name, "endpoints": list(found.endpoints)}
        session.out.document("context", shown)
        return
    click.echo(f"name       {found.name}")
    for endpoint in found.endpoints:
        click.echo(f"endpoint   {endpoint}")


@context.command()
@click.argument("name")
@json_option
@pass_session
def remove(session: Session, name: str) -> None:
    """Forget NAME; the cluster itself is untouched."""
    load_context(session.settings, name)
    remove_context(session.settings, name)
    if session.out.is_json:
        session.out.document("removed", {"name": name})
        return
    click.echo(f"context '{name}' forgotten; the cluster is untouched")
