"""Artifacts through the command line: immutable, replicated, resumed, small in memory."""

import hashlib
import os
from pathlib import Path

import psutil

from tests.e2e.desk import Desk, processes_in

MIB = 1024**2


def test_stored_means_on_disk_on_three_nodes(three: Desk, tmp_path: Path) -> None:
    file = tmp_path / "ledger-2.0.0.tar.gz"
    file.write_bytes(os.urandom(3 * MIB))
    stored = three.aether("artifact", "upload", file, "--json").document["artifact"]
    assert stored["copies"] == ["node-1", "node-2", "node-3"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for node in stored["copies"]:
        copy = three.node_dir("three", node) / "artifacts" / "sha256" / digest
        assert copy.read_bytes() == file.read_bytes()
    again = three.aether("artifact", "upload", file, "--json").document["artifact"]
    assert again["uploaded"] is False
    listed = three.aether("artifact", "list").out
    assert "ledger:2.0.0" in listed
    shown = three.aether("artifact", "show", "ledger:2.0.0", "--json").document["artifact"]
    assert shown["sha256"] == digest


def test_a_version_never_changes(three: Desk, tmp_path: Path) -> None:
    file = tmp_path / "fixed-1.0.0.tar.gz"
    file.write_bytes(b"first")
    three.aether("artifact", "upload", file)
    file.write_bytes(b"second")
    refused = three.aether("artifact", "upload", file, fails=1)
    assert "artifact 'fixed:1.0.0' exists with other bytes" in refused.err
    assert "stored" not in refused.out
    three.aether("artifact", "delete", "fixed:1.0.0")
    three.aether("artifact", "show", "fixed:1.0.0", fails=1)


def test_a_file_that_says_nothing_is_refused(three: Desk, tmp_path: Path) -> None:
    nameless, strange = tmp_path / "thing.jar", tmp_path / "thing-1.0.rpm"
    for file in (nameless, strange):
        file.write_bytes(b"x")
    ran = three.aether("artifact", "upload", nameless, fails=3)
    assert "does not say its name and version" in ran.err
    assert "of no known kind" in three.aether("artifact", "upload", strange, fails=3).err
    empty = tmp_path / "empty-1.0.0.jar"
    empty.touch()
    assert "is empty" in three.aether("artifact", "upload", empty, fails=3).err
    assert "not found" in three.aether("artifact", "upload", tmp_path / "no.jar", fails=3).err


def test_what_runs_cannot_be_deleted(three: Desk) -> None:
    table = 'name = "held"\nartifact = "shop-catalog:1.0.0"'
    three.aether("deploy", three.blueprint("held", "1", table))
    ran = three.aether("artifact", "delete", "shop-catalog:1.0.0", fails=4)
    assert "is used by held@1.0.0" in ran.err
    three.aether("undeploy", "held", "--yes")


def test_a_large_artifact_is_never_held_in_memory(three: Desk, tmp_path: Path) -> None:
    file = tmp_path / "large-1.0.0.tar.gz"
    with file.open("wb") as out:
        for _ in range(256):
            out.write(os.urandom(MIB))
    agents = [
        process
        for process in processes_in(three.root / "data")
        if "aether_core.agent" in process.cmdline()
    ]
    assert len(agents) == 3
    before = {agent.pid: _peak_kib(agent) for agent in agents}
    upload = three.start("artifact", "upload", file, "--json")
    client_peak = 0
    while upload.poll() is None:
        client_peak = max(client_peak, _peak_kib(psutil.Process(upload.pid)) or 0)
    assert upload.returncode == 0
    assert upload.stdout is not None
    upload.stdout.close()
    grown = {agent.pid: (_peak_kib(agent) - before[agent.pid]) // 1024 for agent in agents}
    assert max(grown.values()) <= 32, f"agents grew by {grown} MiB"
    assert client_peak < 128 * 1024
    three.aether("artifact", "delete", "large:1.0.0")


def _peak_kib(process: psutil.Process) -> int:
    """Return the most memory the process ever had resident: VmHWM of proc(5)."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return next((int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")), 0)
