"""`aether slices|instances|scale|logs`: what runs where, how many, and what it says."""

import asyncio
from typing import Any

import click

from aether_core.cli.main import Session, json_option, pass_session
from aether_core.cli.show import Live
from aether_core.client import path_of
from aether_core.errors import WaitTimedOut

POLL_S = 0.1


@click.command()
@json_option
@pass_session
def slices(session: Session) -> None:
    """List the slices."""
    found = _get(session, "/v1/slices")
    if session.out.is_json:
        session.out.document("slices", found)
        return
    rows = []
    for one in found["slices"]:
        for fleet in one["fleets"]:
            rows.append(
                [
                    one["name"],
                    one["blueprint"],
                    fleet["version"],
                    f"{fleet['ready']}/{fleet['wanted']}",
                    f"{fleet['share_bp'] / 100:g} %",
                    one["pinned"] or "",
                ]
            )
    session.out.table(["slice", "blueprint", "version", "ready", "share", "pinned"], rows)


@click.command()
@click.argument("name", required=False)
@json_option
@pass_session
def instances(session: Session, name: str | None) -> None:
    """List the instances, of the slice NAME if given."""
    found = _get(session, "/v1/instances", name=name)
    if session.out.is_json:
        session.out.document("instances", found)
        return
    session.out.table(
        ["instance", "fleet", "node", "state", "port", "pid", "restarts", "why"],
        [
            [
                one["id"],
                one["fleet"],
                one["node"] + ("" if one["is_node_live"] else " (gone)"),
                one["state"],
                one.get("port") or "",
                one.get("pid") or "",
                one.get("restarts") or "",
                one["why"],
            ]
            for one in found["instances"]
        ],
    )


@click.command()
@click.argument("name")
@click.option(
    "--instances", "count", type=click.IntRange(min=1), required=True, help="How many to run."
)
@click.option("--detach", is_flag=True, help="Do not wait until they are ready.")
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=300.0,
    show_default=True,
    help="Stop watching after so many seconds.",
)
@json_option
@pass_session
def scale(session: Session, name: str, count: int, detach: bool, timeout_s: float) -> None:
    """Set the slice NAME's number of instances; later deployments keep it."""

    async def go() -> dict[str, Any]:
        async with session.client() as client:
            begun: dict[str, Any] = await client.post(
                path_of("v1", "slices", name, "scale"), {"instances": count}
            )
            live = Live(session.out)
            while not detach:
                found = await client.get("/v1/instances", name=name)
                mine = [one for one in found["instances"] if one["fleet"] == begun["fleet"]]
                ready = sum(one["state"] == "READY" for one in mine)
                if ready == len(mine) == count:
                    break
                live.show([f"   {name}: {ready} of {count} ready"])
                await asyncio.sleep(POLL_S)
            live.show([])
            return begun

    async def bounded() -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout_s):
                return await go()
        except TimeoutError:
            raise WaitTimedOut(
                f"slice '{name}' has not {count} ready instances after {timeout_s:g} s; it goes on",
                hint=f"aether instances {name}",
            ) from None

    begun = asyncio.run(bounded())
    if session.out.is_json:
        session.out.document("scaled", begun)
        return
    click.echo(f"{name}: {begun['before']} -> {begun['now']} instances")


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come.")
@click.option("-n", "--lines", default=100, show_default=True, help="How many of the last ones.")
@json_option
@pass_session
def logs(session: Session, name: str, follow: bool, lines: int) -> None:
    """Show what the instances of slice NAME (or the one instance) write, on all nodes."""

    async def go() -> None:
        async with session.client() as client:
            found = client.lines("/v1/logs", name=name, lines=lines, follow=str(follow).lower())
            async for one in found:
                if session.out.is_json:
                    session.out.line("log", one)
                elif "lost" in one:
                    session.out.say(f"no more of {one['instance']}@{one['node']}: {one['lost']}")
                else:
                    click.echo(f"{one['instance']}@{one['node']} | {one['line']}")

    asyncio.run(go())


def _get(session: Session, path: str, **params: Any) -> Any:
    async def ask() -> Any:
        async with session.client() as client:
            return await client.get(path, **params)

    return asyncio.run(ask())
