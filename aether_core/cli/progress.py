"""Deployments on a screen: plans, progress while it goes on, what became of it and why."""

import asyncio
from typing import Any

import click

from aether_core.cli.main import Session
from aether_core.cli.show import Live, Output, size
from aether_core.client import Client
from aether_core.errors import AetherError, RolledBack, WaitTimedOut

POLL_S = 0.1
OVER = ("COMPLETED", "FAILED", "ROLLED_BACK")


async def watch(
    session: Session, client: Client, name: str, timeout_s: float | None, *, told: int = 0
) -> None:
    """Show a deployment until it is over, or waits for somebody to say how it goes on.

    `told`: so many of its moves are known already. Errors: RolledBack, AetherError with the cause,
    WaitTimedOut.
    """
    try:
        async with asyncio.timeout(timeout_s):
            found = await _follow(session, client, name, told)
    except TimeoutError:
        raise WaitTimedOut(
            f"deployment '{name}' is not over after {timeout_s:g} s; it goes on",
            hint=f"aether deploy status {name}",
        ) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        session.out.say(f"stopped watching; '{name}' goes on: aether deploy status {name}")
        raise
    deployment = found["deployment"]
    if deployment["state"] == "COMPLETED":
        return
    if deployment["state"] not in OVER:
        session.out.say(f"'{name}' {_waits_for(deployment)}")
        return
    causes = [move["why"] for move in deployment["history"] if move["state"] == "ROLLING_BACK"]
    why = causes[0] if causes else deployment["history"][-1]["why"]
    kind = RolledBack if deployment["state"] == "ROLLED_BACK" else AetherError
    logs = "".join(_last_words(failure) for failure in deployment["failures"])
    raise kind(f"deployment '{name}' is {deployment['state']}: {why}{logs}")


async def _follow(session: Session, client: Client, name: str, told: int) -> Any:
    live = Live(session.out)
    while True:
        found = await client.get("/v1/deployments/current", name=name)
        deployment = found["deployment"]
        for move in deployment["history"][told:]:
            if session.out.is_json:
                session.out.line("move", {"deployment": name, **move})
            else:
                live.settle(f" {move['at'][11:23]}  {move['state']:<12} {move['why']}")
        told = len(deployment["history"])
        if deployment["state"] in OVER or is_waiting(deployment):
            live.show([])
            if session.out.is_json:
                session.out.line("deployment", found)
            return found
        live.show([*map(_fleet_line, found["fleets"]), *_judgement_lines(found)])
        await asyncio.sleep(POLL_S)


def show_plan(planned: dict[str, Any]) -> None:
    """Print what a deployment would start, stop and keep, and what the nodes carry then."""
    plan = planned["plan"]
    click.echo(
        f"plan for {plan['blueprint']} {plan['version']} "
        f"(strategy {planned['strategy']}, revision {plan['revision']})"
    )
    for fleet, nodes in plan["starts"].items():
        click.echo(f"  + start {len(nodes)} of {fleet} on {', '.join(nodes)}")
    for fleet, nodes in plan["stops"].items():
        click.echo(f"  - stop  {len(nodes)} of {fleet} on {', '.join(nodes)}")
    for fleet in plan["keeps"]:
        click.echo(f"  = keep  {fleet}")
    for route in plan["routes"]:
        click.echo(f"    route {route['host']}{route['prefix']} -> {route['slice']}")
    for load in plan["peak"]:
        reserved, capacity = load["reserved"], load["capacity"]
        click.echo(
            f"    {load['node']}: instances at most {load['instances']}, "
            f"{reserved['cpu']:g} of {capacity['cpu']:.3g} cores, "
            f"{size(reserved['memory_bytes'])} of {size(capacity['memory_bytes'])} reserved"
        )


def show_deployment(out: Output, found: dict[str, Any]) -> None:
    """Print how a deployment went so far."""
    deployment = found["deployment"]
    click.echo(
        f"{deployment['id']}: {deployment['blueprint']} {deployment['version']}, "
        f"strategy {deployment['strategy']}, {deployment['state']} since {deployment['since'][:19]}"
    )
    for move in deployment["history"]:
        click.echo(f"  {move['at'][11:23]}  {move['state']:<12} {move['why']}")
    for failure in deployment["failures"]:
        click.echo(_last_words(failure).lstrip("\n"))
    show_versions(out, found)
    for line in _judgement_lines(found):
        click.echo(line.strip())
    if is_waiting(deployment):
        click.echo(f"it {_waits_for(deployment)}")


def show_versions(out: Output, found: dict[str, Any]) -> None:
    """Print the deployment's versions, their shares and how their requests went."""
    titles = ["slice", "version", "role", "ready", "share", "requests", "errors", "p50", "p99"]
    rows = []
    for fleet in found["fleets"]:
        counted = fleet["counted"] or {}
        requests = counted.get("requests", 0)
        rows.append(
            [
                fleet["slice"],
                fleet["version"],
                fleet["variant"] or fleet["role"],
                f"{fleet['ready']}/{fleet['wanted']}",
                f"{fleet['share_bp'] / 100:g} %",
                requests,
                f"{counted['errors'] / requests:.2%}" if requests else "-",
                _ms(counted.get("latency_ms_p50")),
                _ms(counted.get("latency_ms_p99")),
            ]
        )
    out.table(titles, rows)


def is_waiting(deployment: dict[str, Any]) -> bool:
    """Return whether it goes on only when somebody says so."""
    stages = deployment["stages"]
    is_held = deployment["state"] == "PROMOTING" and deployment["asking"] is None
    return bool(is_held and stages[deployment["stage"]]["is_manual"])


def _waits_for(deployment: dict[str, Any]) -> str:
    split = deployment["stages"][deployment["stage"]]["split"]
    if split:
        return (
            f"tests {split['old']} against {split['new']}; end it: "
            f"aether deploy complete --winner {split['new']}, or "
            f"aether deploy variant remove {split['new']}"
        )
    return (
        "has switched and keeps the old fleet warm: aether deploy complete, or "
        "aether deploy rollback to switch back"
    )


def _fleet_line(fleet: dict[str, Any]) -> str:
    name = fleet["variant"] or fleet["role"]
    return (
        f"   {fleet['slice']:<16} {fleet['version']:<10} {name:<4} "
        f"{fleet['ready']} of {fleet['wanted']} ready, {fleet['share_bp'] / 100:g} % of requests"
        f"{_counted(fleet['counted'])}"
    )


def _counted(counted: dict[str, Any] | None) -> str:
    if not counted or not counted["requests"]:
        return ""
    rate = counted["errors"] / counted["requests"]
    p50, p99 = (_ms(counted[f"latency_ms_{q}"]) for q in ("p50", "p99"))
    return f": {counted['requests']}, {rate:.2%} errors, p50 {p50}, p99 {p99}"


def _ms(value_ms: float | None) -> str:
    return "-" if value_ms is None else f"{value_ms:.3g} ms"


def _judgement_lines(found: dict[str, Any]) -> list[str]:
    if found["deployment"]["state"] != "PROMOTING":
        return []
    return [f"   {name:<16} {verdict_of(one)}" for name, one in found["judgements"].items()]


def verdict_of(judgement: dict[str, Any]) -> str:
    """Return the verdict in a line; its numbers are for `explain`."""
    needs, verdict = judgement["needs_requests"], str(judgement["verdict"])
    if verdict == "DEGRADED" or not judgement["findings"]:
        return f"{verdict}: {judgement['why']}"
    return f"{verdict}, about {needs} more requests needed" if needs else verdict


def _last_words(failure: dict[str, Any]) -> str:
    head = f"\ninstance '{failure['id']}' on '{failure['node']}': {failure['why']}; it wrote last:"
    lines = failure["log_tail"] or ["(nothing)"]
    return head + "".join(f"\n  | {line}" for line in lines)
