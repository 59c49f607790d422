"""A user's desk for these tests: the `aether` command with directories and ports of its own."""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

AETHER = str(Path(sys.executable).with_name("aether"))
SECRET = "only for tests: not a secret at all"
BOUND_S = 120.0
SHOP = Path(__file__).parents[2] / "examples" / "shop"


@dataclass
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The objects that `--json` printed."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def document(self) -> dict[str, Any]:
        return self.lines[-1]


@dataclass
class Desk:
    """Where somebody sits and types `aether`."""

    root: Path
    base_port: int = 0
    program: str = AETHER
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base_port = self.base_port or free_range()
        self.env = {
            **os.environ,
            "AETHER_DATA_DIR": str(self.root / "data"),
            "AETHER_CONFIG_DIR": str(self.root / "config"),
            "AETHER_SECRET_CLUSTER_SECRET": SECRET,
            **self.env,
        }

    def aether(self, *words: object, fails: int = 0, **env: str) -> Ran:
        """Run a command line that must end with the exit code `fails`."""
        done = subprocess.run(
            [self.program, *map(str, words)],
            env=self.env | env,
            cwd=self.root,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=BOUND_S,
            check=False,
        )
        ran = Ran(done.returncode, done.stdout, done.stderr)
        assert ran.code == fails, f"{words} ended with {ran.code}:\n{ran.out}\n{ran.err}"
        return ran

    def start(self, *words: object, **env: str) -> "subprocess.Popen[str]":
        """Begin a command line and do not wait."""
        return subprocess.Popen(
            [self.program, *map(str, words)],
            env=self.env | env,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def config(self, name: str, size: int) -> Path:
        """Write a cluster.toml for this desk's ports."""
        base = self.base_port
        path = self.root / f"{name}.toml"
        path.write_text(
            f'[cluster]\nname = "{name}"\nsize = {size}\n\n[cloud]\nprovider = "local"\n\n'
            '[security]\ncluster_secret = "${secrets:cluster/secret}"\n\n'
            f"[network]\napi = {base}\nmesh = {base + 1}\ninner = {base + 2}\n"
            f"etcd_client = {base + 3}\netcd_peer = {base + 4}\ningress = {base + 5}\n"
        )
        return path

    def ingress(self, slot: int = 1) -> str:
        """Return the URL of a node's public listener."""
        # Ingress ports are one apart, from `base + 5`: with up to five nodes none collides.
        return f"http://127.0.0.1:{self.base_port + 4 + slot}"

    def node_dir(self, cluster: str, node: str) -> Path:
        return self.root / "data" / "clusters" / cluster / "nodes" / node

    def instances(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.aether("instances", name, "--json").document["instances"]
        return found

    def blueprint(self, name: str, version: str, *slices: str, strategy: str = "") -> Path:
        """Write a blueprint of the given [[slices]] tables."""
        path = self.root / f"{name}-{version}.toml"
        tables = "".join(f"\n[[slices]]\n{table}\n" for table in slices)
        head = f'[blueprint]\nname = "{name}"\nversion = "{version}"\n'
        path.write_text(head + tables + (f"\n[strategy]\n{strategy}\n" if strategy else ""))
        return path


def free_range(count: int = 60) -> int:
    """Return the first of `count` ports in a row that nobody listens on."""
    chance = random.SystemRandom()
    while True:
        base = chance.randrange(10_000, 19_000, 10)
        if all(_is_free(port) for port in range(base, base + count)):
            return base


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def processes_in(directory: Path) -> Iterator[psutil.Process]:
    """Yield the processes that work below a directory."""
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(str(directory)) and process.status() != "zombie":
                yield process
        except psutil.Error:
            continue


@dataclass
class Load:
    """Requests that were answered, and how; `failed` counts what a user would call an error."""

    answers: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.answers.values()) + len(self.failed)


@asynccontextmanager
async def load(*urls: str, workers: int = 4, key: str = "version") -> AsyncIterator[Load]:
    """Ask all `urls` in turn for as long as the block runs; count answers by a field of them."""
    done, seen = asyncio.Event(), Load()

    async def ask(client: httpx.AsyncClient) -> None:
        turn = 0
        while not done.is_set():
            url = urls[turn % len(urls)]
            turn += 1
            try:
                answer = await client.get(url)
                answer.raise_for_status()
                seen.answers[str(answer.json()[key])] += 1
            except httpx.HTTPError as error:
                seen.failed.append(f"{url}: {error!r}")

    async with httpx.AsyncClient(timeout=BOUND_S, trust_env=False) as client:
        tasks = [asyncio.ensure_future(ask(client)) for _ in range(workers)]
        try:
            yield seen
        finally:
            done.set()
            await asyncio.gather(*tasks)


async def until(holds: Any, *, bound_s: float = BOUND_S) -> None:
    """Wait until `holds()` is true, asking again and again in a thread."""
    async with asyncio.timeout(bound_s):
        while not await asyncio.to_thread(holds):
            await asyncio.sleep(0.1)
