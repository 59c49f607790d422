"""The floors: the same engines without Aether, with the options that Aether gives them."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from aether_core import etcd
from aether_core.envoy import HTTP_MANAGER, ROUTER
from aether_core.ingress import find_envoy

BOUND_S = 60.0
ASK_TIMEOUT_S = 0.3
HOST = "127.0.0.1"
QUIET = ("--disable-hot-restart", "--log-level", "error", "--concurrency", "1")


def start_bare(scratch: Path, base_port: int, size: int) -> float:
    """Return the seconds in which bare etcd members and Envoys start, as many of each as `size`."""
    client_ports = range(base_port, base_port + size)
    peer_ports = range(base_port + size, base_port + 2 * size)
    proxy_ports = range(base_port + 2 * size, base_port + 3 * size)
    envoys = []
    for port in proxy_ports:
        envoys.append(_envoy_command(scratch, f"bare-{port}", answering(port, "ok")))
    members = _member_commands(scratch, client_ports, peer_ports)
    began_s = time.perf_counter()
    with ExitStack() as running:
        for command in [*members, *envoys]:
            running.enter_context(process(command))
        reads = [(f"http://{HOST}:{port}/v3/kv/range", '{"key": "AA=="}') for port in client_ports]
        asks = [(f"http://{HOST}:{port}/", "") for port in proxy_ports]
        for url, body in [*reads, *asks]:
            wait_for(url, body)
        return time.perf_counter() - began_s


@contextmanager
def process(
    command: Sequence[str], env: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program for as long as the block."""
    silent = subprocess.DEVNULL
    with subprocess.Popen(list(command), env=env, stdout=silent, stderr=silent) as running:
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def envoy(scratch: Path, name: str, config: dict[str, Any]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run an Envoy with a static configuration and one thread."""
    with process(_envoy_command(scratch, name, config)) as running:
        yield running


def wait_for(url: str, body: str = "") -> None:
    """Return when `url` answers with success: a POST with a body, otherwise a GET."""
    method = "POST" if body else "GET"
    deadline_s = time.perf_counter() + BOUND_S
    while time.perf_counter() < deadline_s:
        try:
            if httpx.request(
                method, url, content=body, timeout=ASK_TIMEOUT_S, trust_env=False
            ).is_success:
                return
        except httpx.HTTPError:
            pass
        pause()
    raise TimeoutError(f"{url} does not answer")


def pause(seconds: float = 0.01) -> None:
    """Wait. A bench measures the world's own clock, so there is none to inject."""
    time.sleep(seconds)  # noqa: TID251


def answering(port: int | str, body: str) -> dict[str, Any]:
    """Return the configuration of an Envoy that answers everything by itself."""
    route = {"direct_response": {"status": 200, "body": {"inline_string": body}}}
    return _static(port, route, [])


def forwarding(port: int, backend_port: int) -> dict[str, Any]:
    """Return the least configuration that forwards everything to one backend."""
    endpoint = {"endpoint": {"address": _address(backend_port)}}
    cluster = {
        "name": "backend",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "backend",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
        # Envoy's own limits are lower than what the load generator keeps open.
        "circuit_breakers": {
            "thresholds": [{"max_connections": 65536, "max_pending_requests": 65536}]
        },
    }
    return _static(port, {"route": {"cluster": "backend"}}, [cluster])


def _static(port: int | str, action: dict[str, Any], clusters: list[Any]) -> dict[str, Any]:
    manager = {
        "@type": HTTP_MANAGER,
        "stat_prefix": "bare",
        "generate_request_id": False,
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **action}]}
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}},
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {"address": _address(port), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def _address(port: int | str) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}


def _envoy_command(scratch: Path, name: str, config: dict[str, Any]) -> list[str]:
    path = scratch / f"{name}.json"
    path.write_text(json.dumps(config))
    return [find_envoy(), "-c", str(path), *QUIET]


def _member_commands(
    scratch: Path, client_ports: Sequence[int], peer_ports: Sequence[int]
) -> list[list[str]]:
    peers = ",".join(f"m{port}=http://{HOST}:{port}" for port in peer_ports)
    return [
        [
            str(etcd.find()),
            f"--name=m{peer}",
            f"--data-dir={scratch / f'bare-etcd-{peer}'}",
            f"--listen-client-urls=http://{HOST}:{client}",
            f"--advertise-client-urls=http://{HOST}:{client}",
            f"--listen-peer-urls=http://{HOST}:{peer}",
            f"--initial-advertise-peer-urls=http://{HOST}:{peer}",
            f"--initial-cluster={peers}",
            f"--heartbeat-interval={etcd.HEARTBEAT_MS}",
            f"--election-timeout={etcd.ELECTION_MS}",
            "--logger=zap",
            "--log-level=error",
        ]
        for client, peer in zip(client_ports, peer_ports, strict=True)
    ]
