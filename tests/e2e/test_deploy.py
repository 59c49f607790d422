"""Deploying through the command line: what runs, what answers, and what happens when it cannot."""

import asyncio
import json
import subprocess
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.desk import SHOP, Desk, Ran, load, until

CATALOG = 'name = "{name}"\nartifact = "shop-catalog:{version}"\nroute = {{ prefix = "/{name}" }}\n'


def test_wheel_zip_and_jar_run_side_by_side(three: Desk) -> None:
    planned = three.aether("deploy", SHOP / "blueprint-prices.toml", "--dry-run", "--json").document
    assert sum(map(len, planned["plan"]["starts"].values())) == 6
    assert three.aether("slices", "--json").document["slices"] == []
    three.aether("deploy", SHOP / "blueprint-prices.toml")
    for slot in (1, 2, 3):  # Any node answers for every slice.
        front = httpx.get(three.ingress(slot)).json()
        assert (front["slice"], front["version"]) == ("web", "1.1.0")
        assert front["catalog"]["version"] == "1.1.0"  # Asked by web, through the mesh.
        prices = httpx.get(f"{three.ingress(slot)}/prices").json()
        assert prices == {"slice": "prices", "version": "1.0.0", "tea": 3}
    shown = three.aether("slices", "--json").document["slices"]
    ready = {one["name"]: one["fleets"][0]["ready"] for one in shown}
    assert ready == {"web": 3, "catalog": 2, "prices": 1}
    nodes = {one["node"] for one in three.instances("web")}
    assert nodes == {"node-1", "node-2", "node-3"}
    logs = three.aether("logs", "prices").out
    assert "prices 1.0.0 listens" in logs
    status = three.aether("deploy", "status").out
    assert "COMPLETED" in status


def test_deploying_the_same_again_changes_nothing(three: Desk) -> None:
    three.aether("deploy", SHOP / "blueprint-prices.toml")
    before = {one["id"]: one["pid"] for one in three.instances("web")}
    planned = three.aether("deploy", SHOP / "blueprint-prices.toml", "--dry-run", "--json").document
    assert (planned["plan"]["starts"], planned["plan"]["stops"]) == ({}, {})
    three.aether("deploy", SHOP / "blueprint-prices.toml")
    assert {one["id"]: one["pid"] for one in three.instances("web")} == before


async def test_versions_change_under_load_without_a_failed_request(three: Desk) -> None:
    old, new = (
        three.blueprint("swap", v, CATALOG.format(name="swap", version=v) + "instances = 3")
        for v in ("1.0.0", "1.1.0")
    )
    await _thread(three, "deploy", old)
    async with load(*(f"{three.ingress(slot)}/swap" for slot in (1, 2, 3))) as seen:
        for path in (new, old, new):
            await _thread(three, "deploy", path)
    assert not seen.failed
    assert set(seen.answers) == {"1.0.0", "1.1.0"}
    await _thread(three, "undeploy", "swap", "--yes")
    removed = await asyncio.to_thread(httpx.get, f"{three.ingress(2)}/swap")
    assert "goods" not in removed.json()  # The catalog's answer; what is left at "/" is web's.


async def test_a_version_that_is_not_healthy_never_gets_traffic(three: Desk) -> None:
    table = CATALOG.format(name="frail", version="1.0.0")
    await _thread(three, "deploy", three.blueprint("frail", "1", table))
    bad = three.blueprint("frail", "2", table + 'env = { SHOP_BROKEN = "1" }\n')
    async with load(f"{three.ingress()}/frail") as seen:
        failed = await _thread(three, "deploy", bad, fails=1)
    assert not seen.failed
    assert "is FAILED" in failed.err
    assert "| the catalog cannot find its database" in failed.err
    assert "COMPLETED" not in failed.out + failed.err
    slow = three.blueprint(
        "frail",
        "3",
        table + 'health = { path = "/", start_s = 60.0 }\nenv = { SHOP_SILENT = "1" }\n',
        strategy="deadline_s = 2",
    )
    late = await _thread(three, "deploy", slow, fails=1)
    assert "deadline passed: frail: 0 of 1 healthy" in late.err
    await until(lambda: len(three.instances("frail")) == 1)
    await _thread(three, "deploy", three.blueprint("frail", "1", table))  # Nothing is in the way.
    await _thread(three, "undeploy", "frail", "--yes")


def test_scaling_keeps_what_runs_and_outlives_a_deployment(three: Desk) -> None:
    path = three.blueprint("many", "1", CATALOG.format(name="many", version="1.0.0"))
    three.aether("deploy", path)
    first = {one["pid"] for one in three.instances("many")}
    three.aether("scale", "many", "--instances", 5)
    five = three.instances("many")
    assert [one["state"] for one in five] == ["READY"] * 5
    assert first < {one["pid"] for one in five}
    three.aether("deploy", path)
    assert len(three.instances("many")) == 5
    three.aether("scale", "many", "--instances", 1)
    three.aether("undeploy", "many", "--yes")


@pytest.mark.parametrize(
    ("table", "code", "said"),
    [
        ('artifact = "nobody:1.0.0"', 3, "artifact 'nobody:1.0.0' is not in the cluster"),
        ('artifact = "shop-catalog:9.9.9"', 3, "there is shop-catalog:1.0.0, shop-catalog:1.1.0"),
        (
            'artifact = "shop-catalog:1.0.0"\nresources = { memory = "900GiB" }',
            4,
            "1 of 1 instances of 'x@1.0.0",
        ),
        ('artifact = "shop-catalog:1.0.0"\ninstanses = 3', 3, "did you mean 'instances'?"),
        ('artifact = "shop-web:1.0.0"', 3, "a .whl needs what to start"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    three: Desk, table: str, code: int, said: str
) -> None:
    path = three.blueprint("x", "1", f'name = "x"\n{table}')
    ran = three.aether("deploy", path, fails=code)
    assert said in ran.err
    names = [one["name"] for one in three.aether("slices", "--json").document["slices"]]
    assert "x" not in names


def test_an_unknown_strategy_is_named(three: Desk) -> None:
    path = three.blueprint("y", "1", 'name = "y"\nartifact = "shop-catalog:1.0.0"')
    ran = three.aether("deploy", path, "--strategy", "yolo", fails=3)
    assert "driver 'yolo' not found in aether.strategies; installed: " in ran.err


def test_a_damaged_artifact_fails_with_its_reason(three: Desk, tmp_path: Path) -> None:
    broken = tmp_path / "broken-1.0.0.pyz"
    broken.write_bytes(b"this is no zip archive")
    three.aether("artifact", "upload", broken)
    path = three.blueprint("broken", "1", 'name = "broken"\nartifact = "broken:1.0.0"')
    ran = three.aether("deploy", path, fails=1)
    assert "artifact 'broken:1.0.0' is not a pyz" in ran.err


def test_a_slice_sees_its_own_environment_and_nothing_else(three: Desk) -> None:
    table = CATALOG.format(name="plain", version="1.0.0") + 'env = { COLOUR = "blue" }\n'
    three.aether("deploy", three.blueprint("plain", "1", table))
    (one,) = three.instances("plain")
    seen = psutil.Process(one["pid"]).environ()
    assert seen["COLOUR"] == "blue"
    assert (seen["AETHER_SLICE"], seen["AETHER_VERSION"]) == ("plain", "1.0.0")
    assert seen["PORT"] == str(one["port"])
    allowed = {"PATH", "LANG", "HOME", "TMPDIR", "PORT", "COLOUR", "LC_CTYPE"}
    assert {name for name in seen if not name.startswith("AETHER_")} <= allowed
    assert not [name for name in seen if "SECRET" in name or "TOKEN" in name]
    three.aether("undeploy", "plain", "--yes")


async def test_a_killed_agent_is_replaced_without_anybody_noticing(three: Desk) -> None:
    path = three.blueprint(
        "calm", "1", CATALOG.format(name="calm", version="1.0.0") + "instances = 3"
    )
    await _thread(three, "deploy", path)
    nodes = three.aether("cluster", "status", "--json").document["nodes"]
    pids = {node["id"]: node["agent_pid"] for node in nodes}
    leader = next(node["id"] for node in nodes if node["is_leader"])
    before = {one["id"]: (one["pid"], one["restarts"]) for one in three.instances("calm")}
    served = {p.pid for p in _others(three, pids[leader], leader)}
    async with load(*(f"{three.ingress(slot)}/calm" for slot in (1, 2, 3))) as seen:
        psutil.Process(pids[leader]).kill()
        _start_agent(three, leader)
        await until(lambda: _agent(three, leader) not in (None, pids[leader]))
        await until(lambda: len(three.instances("calm")) == 3)
    assert not seen.failed
    assert {p.pid for p in _others(three, 0, leader)} >= served  # Envoy, etcd and instances.
    after = {one["id"]: (one["pid"], one["restarts"]) for one in three.instances("calm")}
    assert after == before
    await _thread(three, "undeploy", "calm", "--yes")


def test_tokens_have_roles_and_can_be_revoked(three: Desk) -> None:
    made = three.aether("token", "create", "reader", "--role", "viewer", "--json").document
    context = json.loads((three.root / "config" / "contexts" / "three.json").read_text())
    other = Desk(three.root / "reader", three.base_port)
    (other.root / "config" / "contexts").mkdir(parents=True)
    context["token"] = made["token"]
    (other.root / "config" / "contexts" / "three.json").write_text(json.dumps(context))
    reading = {"AETHER_CONTEXT": "three"}
    other.aether("slices", **reading)
    refused = other.aether("scale", "web", "--instances", 2, fails=4, **reading)
    assert "token 'reader' is viewer: this needs operator" in refused.err
    three.aether("token", "revoke", made["id"])
    unknown = other.aether("slices", fails=4, **reading)
    assert "token not known" in unknown.err
    assert made["token"] not in three.aether("token", "list").out


def _agent(desk: Desk, node: str) -> int | None:
    nodes = desk.aether("cluster", "status", "--json").document["nodes"]
    pid: int | None = next(one["agent_pid"] for one in nodes if one["id"] == node)
    return pid


def _start_agent(desk: Desk, node: str) -> None:
    """Do what a machine's init does when the agent is gone: start it, before it counts as lost."""
    directory = desk.node_dir("three", node)
    python = Path(desk.program).with_name("python")
    # By a shell that ends at once, so that the agent is nobody's child here.
    begin = '"$0" -m aether_core.agent "$PWD" >> logs/agent.log 2>&1 &'
    subprocess.run(["/bin/sh", "-c", begin, python], cwd=directory, check=True)


def _others(desk: Desk, agent_pid: int, node: str) -> list[psutil.Process]:
    """Return what runs on a node besides its agent."""
    found = []
    for process in psutil.process_iter():
        try:
            inside = process.cwd().startswith(str(desk.node_dir("three", node)))
            if inside and process.pid != agent_pid:
                found.append(process)
        except psutil.Error:
            continue
    return found


async def _thread(desk: Desk, *words: object, fails: int = 0) -> Ran:
    return await asyncio.to_thread(desk.aether, *words, fails=fails)
