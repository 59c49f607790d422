"""Requests per second through a node's Envoy and through a bare one, in turns."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil

from tests.bench import backend, floor
from tests.bench.figures import Figure, Goal, Of
from tests.bench.sizes import Sizes
from tests.e2e.desk import Desk, free_range, processes_in

CONNECTIONS = 32


def measure_throughput(scratch: Path, sizes: Sizes) -> list[Figure]:
    """Both Envoys have one thread and the same backend, which is an Envoy too."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        desk = Desk(Path(directory))
        desk.aether("cluster", "bootstrap", "--config", desk.config("one", 1))
        try:
            backend.upload(desk, "1")
            backend.deploy(desk, "web", "1")
            return _compare(desk, sizes)
        finally:
            desk.aether("cluster", "destroy", "one", "--yes")


def _compare(desk: Desk, sizes: Sizes) -> list[Figure]:
    (instance,) = desk.instances("web")
    port = free_range()
    config = floor.forwarding(port, instance["port"])
    ours, bare = f"{desk.ingress()}/web", f"http://{floor.HOST}:{port}/web"
    own_pid = _ingress_pid(desk.node_dir("one", "node-1"))
    rates: dict[str, list[float]] = {ours: [], bare: []}
    costs: dict[str, list[float]] = {ours: [], bare: []}
    with floor.envoy(desk.root, "bare", config) as envoy:
        pids = {ours: own_pid, bare: envoy.pid}
        for url in (ours, bare):
            floor.wait_for(url)
            _load(url, pids[url], 1)  # Both warm: connections open, pages touched.
        for turn in range(sizes.rounds):
            for url in (ours, bare) if turn % 2 == 0 else (bare, ours):
                rate, cost_us = _load(url, pids[url], sizes.round_s)
                rates[url].append(rate)
                costs[url].append(cost_us)
    floor_is = "a bare Envoy with a static configuration"
    return [
        Figure(
            "requests through a node's ingress", "1/s", tuple(rates[ours]), tuple(rates[bare]),
            floor_is, Goal(Of.RATIO, 0.95, at_least=True),
        ),
        Figure(
            "processor time of the ingress per request", "µs", tuple(costs[ours]),
            tuple(costs[bare]), floor_is,
        ),
    ]  # fmt: skip


def _load(url: str, pid: int, duration_s: int) -> tuple[float, float]:
    """Return requests per second, and the proxy's processor time per request in microseconds."""
    program = shutil.which("wrk")
    assert program, "the bench needs wrk: apt install wrk"
    before_s = _cpu_s(pid)
    done = subprocess.run(
        [program, "-t1", f"-c{CONNECTIONS}", f"-d{duration_s}s", url],
        capture_output=True,
        text=True,
        check=True,
    )
    spent_s = _cpu_s(pid) - before_s
    assert "Non-2xx" not in done.stdout, done.stdout
    assert "Socket errors" not in done.stdout, done.stdout
    rate = float(_number(r"Requests/sec:\s+([\d.]+)", done.stdout))
    count = int(_number(r"(\d+) requests in", done.stdout))
    return rate, spent_s / count * 1e6


def _number(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, text
    return found[1]


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _ingress_pid(node_dir: Path) -> int:
    (pid,) = [p.pid for p in processes_in(node_dir) if p.cwd() == str(node_dir / "envoy")]
    return pid
