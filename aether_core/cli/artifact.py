"""`aether artifact`: immutable versions of what slices are made of."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click

from aether_core.blobs import digest_of, name_and_version
from aether_core.cli.main import Session, json_option, pass_session
from aether_core.cli.show import Live, size
from aether_core.client import path_of
from aether_core.errors import ConfigError
from aether_core.plugins import runtime_suffixes

CHUNK_BYTES = 256 * 1024
BAR_WIDTH = 30


@click.group()
def artifact() -> None:
    """Upload and list what slices are made of."""


@artifact.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Instead of the name that the file name says.")
@click.option("--version", "version", help="Instead of the version that the file name says.")
@json_option
@pass_session
def upload(session: Session, file: Path, name: str | None, version: str | None) -> None:
    """Store FILE, such as target/my-service-1.0.0.jar. Done means: on disk on three nodes."""
    if not file.is_file():
        raise ConfigError(f"file '{file}' not found")
    name, version, kind = _about(file, name, version)
    path = path_of("v1", "artifacts", name, version)
    stored = asyncio.run(_upload(session, file, path, kind))
    if session.out.is_json:
        session.out.document("artifact", {"artifact": stored})
        return
    done = "stored" if stored["uploaded"] else "was there already, the same bytes"
    click.echo(
        f"{name}:{version} {done}: {size(stored['size_bytes'])}, SHA-256 "
        f"{stored['sha256'][:12]}, on {', '.join(stored['copies'])}"
    )


def _about(file: Path, name: str | None, version: str | None) -> tuple[str, str, str]:
    """Return the artifact's name, version and kind: as given, else as the file's name says."""
    kinds = runtime_suffixes()
    if name and version:
        suffix = next((s for s in kinds if file.name.endswith(s)), "")
        if not suffix:
            raise ConfigError(f"'{file.name}' is of no known kind: {', '.join(sorted(kinds))}")
        return name, version, kinds[suffix]
    said_name, said_version, suffix = name_and_version(file.name, kinds)
    return name or said_name, version or said_version, kinds[suffix]


async def _upload(session: Session, file: Path, path: str, kind: str) -> Any:
    try:
        sha256, size_bytes = digest_of(file), file.stat().st_size
    except OSError as error:
        raise ConfigError(f"file '{file}' not readable: {error.strerror}") from error
    if not size_bytes:
        raise ConfigError(f"file '{file}' is empty")
    async with session.client() as client:
        state = await client.get(f"/v1/uploads/{sha256}")
        offset = min(state["received"], size_bytes)
        if offset:
            session.out.say(f"going on at {size(offset)} of {size(size_bytes)}")
        chunks = _chunks(file, offset, size_bytes, Live(session.out))
        query = f"kind={kind}&sha256={sha256}&size_bytes={size_bytes}&offset={offset}"
        headers = {"Content-Length": str(size_bytes - offset)}
        return await client.put_stream(f"{path}?{query}", chunks, headers)


async def _chunks(file: Path, offset: int, size_bytes: int, live: Live) -> AsyncIterator[bytes]:
    sent = offset
    with file.open("rb") as source:
        source.seek(offset)
        while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            done = int(BAR_WIDTH * sent / size_bytes)
            bar = "█" * done + "░" * (BAR_WIDTH - done)
            live.show([f" {file.name} {bar} {size(sent)} of {size(size_bytes)}"])
    live.settle(f" {file.name}: sent, waiting for the copies")


@artifact.command("list")
@json_option
@pass_session
def list_command(session: Session) -> None:
    """List every version."""

    async def ask() -> Any:
        async with session.client() as client:
            return await client.get("/v1/artifacts")

    found = asyncio.run(ask())
    if session.out.is_json:
        session.out.document("artifacts", found)
        return
    session.out.table(
        ["artifact", "kind", "size", "sha256", "state", "copies"],
        [
            [
                f"{one['name']}:{one['version']}",
                one["kind"],
                size(one["size_bytes"]),
                one["sha256"][:12],
                one["state"],
                ", ".join(one["copies"]),
            ]
            for one in found["artifacts"]
        ],
    )


@artifact.command()
@click.argument("reference", metavar="NAME:VERSION")
@json_option
@pass_session
def show(session: Session, reference: str) -> None:
    """Show one version."""
    name, version = _split(reference)

    async def ask() -> Any:
        async with session.client() as client:
            return await client.get(path_of("v1", "artifacts", name, version))

    found = asyncio.run(ask())
    if session.out.is_json:
        session.out.document("artifact", {"artifact": found})
        return
    for key, value in found.items():
        click.echo(f"{key:<12} {', '.join(value) if isinstance(value, list) else value}")


@artifact.command()
@click.argument("reference", metavar="NAME:VERSION")
@json_option
@pass_session
def delete(session: Session, reference: str) -> None:
    """Forget a version that nothing runs."""
    name, version = _split(reference)

    async def ask() -> Any:
        async with session.client() as client:
            return await client.delete(path_of("v1", "artifacts", name, version))

    found = asyncio.run(ask())
    if session.out.is_json:
        session.out.document("deleted", found)
        return
    click.echo(f"{reference} deleted")


def _split(reference: str) -> tuple[str, str]:
    name, _, version = reference.partition(":")
    if not name or not version:
        raise click.UsageError(f"'{reference}' is not NAME:VERSION")
    return name, version
