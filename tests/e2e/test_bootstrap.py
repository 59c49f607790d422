"""Making, resuming and removing clusters, and everything that may be wrong before and while."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.e2e.desk import AETHER, SECRET, Desk, processes_in

STEPS = 12


@pytest.mark.parametrize("size", [1, 3])
def test_a_cluster_is_made_and_removed_without_a_trace(desk: Desk, size: int) -> None:
    config = desk.config("trace", size)
    made = desk.aether("cluster", "bootstrap", "--config", config, "--json")
    done = [line["step"] for line in made.lines if line.get("state") == "done"]
    assert done == list(range(1, STEPS + 1))
    shown = desk.aether("cluster", "status", "--json").document
    assert [node["state"] for node in shown["nodes"]] == ["ON_DUTY"] * size
    assert len(list(processes_in(desk.root / "data"))) == size * 3  # Agent, etcd, Envoy.
    desk.aether("cluster", "destroy", "trace", "--yes")
    assert not list(processes_in(desk.root / "data"))
    assert not [p for p in (desk.root / "data").rglob("*") if p.is_file()]
    assert not list((desk.root / "config").rglob("*.json"))
    for port in range(desk.base_port, desk.base_port + 60):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still answers"


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_at_any_step_a_second_run_goes_on(desk: Desk, step: int) -> None:
    config = desk.config("again", 1)
    first = desk.start("cluster", "bootstrap", "--config", config, "--json")
    assert first.stdout is not None
    for line in first.stdout:
        said = json.loads(line)
        if said.get("step") == step and said["state"] == "running":
            first.kill()
            break
    first.wait()
    first.stdout.close()
    desk.aether("cluster", "bootstrap", "--config", config)
    nodes = desk.aether("cluster", "status", "--json").document["nodes"]
    assert [(node["id"], node["state"]) for node in nodes] == [("node-1", "ON_DUTY")]
    # One of each, whatever the first run had started.
    assert len(list(processes_in(desk.root / "data"))) == 3
    desk.aether("token", "list")  # The token of the context is one that the store knows.


def test_a_second_bootstrap_finds_everything_there(desk: Desk) -> None:
    config = desk.config("twice", 1)
    desk.aether("cluster", "bootstrap", "--config", config)
    before = {process.pid for process in processes_in(desk.root / "data")}
    again = desk.aether("cluster", "bootstrap", "--config", config)
    assert "0 made, 1 found" in again.err
    assert {process.pid for process in processes_in(desk.root / "data")} == before
    listed = desk.aether("cluster", "list", "--json").document["clusters"]
    assert listed == [{"name": "twice", "provider": "local", "machines": 1, "running": 1}]


def test_another_secret_or_configuration_is_refused(desk: Desk) -> None:
    config = desk.config("kept", 1)
    desk.aether("cluster", "bootstrap", "--config", config)
    other = desk.aether(
        *("cluster", "bootstrap", "--config", config),
        fails=4,
        AETHER_SECRET_CLUSTER_SECRET="another secret, long enough",
    )
    assert "exists with another secret" in other.err
    config.write_text(config.read_text().replace("size = 1", "size = 3"))
    changed = desk.aether("cluster", "bootstrap", "--config", config, fails=4)
    assert "exists with another configuration" in changed.err
    assert "aether cluster destroy kept" in changed.err


def test_a_busy_port_is_named_before_anything_is_made(desk: Desk) -> None:
    config = desk.config("busy", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", desk.base_port + 3))
        taken.listen()
        ran = desk.aether("cluster", "bootstrap", "--config", config, fails=4)
    assert f"port {desk.base_port + 3} ([network] etcd_client) cannot be used" in ran.err
    assert f"pid {os.getpid()}" in ran.err
    assert not list((desk.root / "data").rglob("boot.json"))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("etcd Version: 3.5.1", "is refused: 3.5.0 to 3.5.2 can lose consistency"),
        ("etcd Version: 3.3.27", "is too old: 3.4.22 or newer is needed"),
        ("hello", "does not say its etcd version"),
    ],
)
def test_a_refused_etcd_is_named(desk: Desk, said: str, reason: str) -> None:
    program = desk.root / "etcd"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    config = desk.config("old", 1)
    ran = desk.aether(
        "cluster", "bootstrap", "--config", config, fails=1, AETHER_ETCD_PATH=str(program)
    )
    assert reason in ran.err
    assert "try: " in ran.err


def test_missing_programs_are_named(desk: Desk) -> None:
    config = desk.config("none", 1)
    no_etcd = desk.aether(
        "cluster", "bootstrap", "--config", config, fails=1, PATH=str(Path(AETHER).parent)
    )
    assert "etcd not found" in no_etcd.err
    no_envoy = desk.aether(
        "cluster", "bootstrap", "--config", config, fails=1, AETHER_ENVOY_PATH="/nowhere/envoy"
    )
    assert "envoy not found" in no_envoy.err
    other_envoy = desk.aether(
        "cluster", "bootstrap", "--config", config, fails=1, AETHER_ENVOY_PATH="/bin/true"
    )
    assert "is not Envoy 1.40" in other_envoy.err


def test_a_missing_or_short_secret_is_named(desk: Desk) -> None:
    config = desk.config("secretless", 1)
    missing = desk.aether(
        "cluster", "bootstrap", "--config", config, fails=3, AETHER_SECRET_CLUSTER_SECRET="short"
    )
    assert "the cluster secret is too short: 5 characters" in missing.err
    del desk.env["AETHER_SECRET_CLUSTER_SECRET"]
    missing = desk.aether("cluster", "bootstrap", "--config", config, fails=3)
    assert "AETHER_SECRET_CLUSTER_SECRET is not set" in missing.err


def test_a_broken_configuration_shows_every_problem_at_once(desk: Desk) -> None:
    config = desk.config("bad", 2)
    text = config.read_text().replace("size = 2", "sise = 2\nquorum = 2")
    config.write_text(text.replace('provider = "local"', "provider = 7"))
    ran = desk.aether("config", "check", config, fails=3)
    assert "bad.toml:3: cluster.sise: unknown key (did you mean 'size'?)" in ran.err
    assert "bad.toml:1: cluster.size: missing" in ran.err
    assert "bad.toml:7: cloud.provider: " in ran.err
    made = desk.aether("cluster", "bootstrap", "--config", config, fails=3)
    assert made.err.endswith(ran.err)


def test_the_secret_is_nowhere_but_where_nodes_need_it(desk: Desk) -> None:
    desk.aether("cluster", "bootstrap", "--config", desk.config("quiet", 1))
    token = json.loads((desk.root / "config" / "contexts" / "quiet.json").read_text())["token"]
    secret_part = token.rpartition("_")[2]
    holders = {
        path.relative_to(desk.root).as_posix()
        for path in desk.root.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    }
    assert holders == {"data/clusters/quiet/nodes/node-1/boot.json"}
    boot = desk.node_dir("quiet", "node-1") / "boot.json"
    assert stat.S_IMODE(boot.stat().st_mode) == 0o600
    known = {
        path.relative_to(desk.root).as_posix()
        for path in desk.root.rglob("*")
        if path.is_file() and secret_part.encode() in path.read_bytes()
    }
    assert known == {"config/contexts/quiet.json", "data/clusters/quiet/admin-token"}
    for process in processes_in(desk.root / "data"):
        said = " ".join(process.cmdline()) + " ".join(process.environ().values())
        assert SECRET not in said
        assert secret_part not in said
