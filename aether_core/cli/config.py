"""`aether config`: check configuration files without a cluster."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aether_core.blueprint import Blueprint
from aether_core.cli.main import Session, json_option, pass_session
from aether_core.cluster_config import config_model
from aether_core.config import json_schema, read_toml, validate
from aether_core.settings import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel

KINDS = ("cluster", "blueprint", "aether")


@click.group()
def config() -> None:
    """Check configuration files."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@pass_session
def check(session: Session, file: Path) -> None:
    """Say whether FILE (a cluster.toml, blueprint.toml or aether.toml) is valid."""
    document = read_toml(file)
    kind = next((k for k in KINDS[:2] if k in document.values), KINDS[2])
    validate(document, _model(kind, session))
    if session.out.is_json:
        session.out.document("checked", {"file": str(file), "as": kind})
        return
    click.echo(f"{file}: valid as {kind}.toml")


@config.command()
@click.argument("kind", type=click.Choice(KINDS))
@pass_session
def schema(session: Session, kind: str) -> None:
    """Print the JSON schema that editors use."""
    click.echo(json.dumps(json_schema(_model(kind, session)), indent=2, sort_keys=True))


def _model(kind: str, session: Session) -> "type[BaseModel]":
    if kind == "cluster":
        return config_model(session.hooks.config_tables)
    return Blueprint if kind == "blueprint" else Settings
