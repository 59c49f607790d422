"""`aether hello`."""

import click


@click.command()
@click.argument("name", default="world")
def hello(name: str) -> None:
    """Greet NAME: the command that this plugin adds."""
    click.echo(f"hello, {name}")
