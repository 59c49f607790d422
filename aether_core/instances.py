"""One instance on this node, from its artifact's arrival to its end; adopted by the next agent.

`Instance.run` is one task per assignment. It ends when the instance was drained and is gone.
"""

import asyncio
import os
import shutil
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from loguru import logger

from aether_core.clock import Clock
from aether_core.drivers import Runtime
from aether_core.errors import AetherError
from aether_core.model import (
    Assignment,
    InstanceSpec,
    InstanceState,
    InstanceStatus,
    decode,
    encode,
)
from aether_core.plugins import driver_errors
from aether_core.probe import probe
from aether_core.process import Child, is_alive, rotate, spawn, stop, wait_ended

# Below the range that systems give to outgoing connections (32768 on), so nothing takes it
# between our looking and the instance's listening.
FIRST_PORT, LAST_PORT = 20_000, 29_999
BACKOFF_FIRST_S, BACKOFF_LAST_S = 1.0, 60.0
# Healthy for this long, an instance's earlier failures are forgotten.
FORGIVEN_AFTER_S = 60.0
# While an instance starts it is asked more often: its readiness is what a deployment waits for.
STARTING_INTERVAL_S = 0.1
LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 4096

S = InstanceState


@dataclass(frozen=True)
class Surroundings:
    """What an instance needs of its node."""

    directory: Path  # Holds one directory per instance.
    clock: Clock
    mesh_url: str
    fetch: Callable[[InstanceSpec], Awaitable[Path]]  # Returns the artifact's file.
    prepare: Callable[[InstanceSpec, Path], Awaitable[Path]]  # Returns the unpacked directory.
    runtime: Callable[[str], Runtime]
    resolve: Callable[[dict[str, str]], Awaitable[dict[str, str]]]  # Secrets in `env`.
    wait_idle: Callable[[InstanceStatus], Awaitable[None]]  # No request reaches it any more.
    report: Callable[[InstanceStatus], None]


@dataclass(frozen=True)
class Kept:
    """instance.json: what the next agent needs to know."""

    assignment: Assignment
    spec: InstanceSpec
    child: Child | None = None
    port: int = 0
    restarts: int = 0


class Instance:
    """Supervises one assignment."""

    def __init__(self, around: Surroundings, kept: Kept) -> None:
        self.kept = kept
        self.spec = kept.spec
        self._around = around
        self._draining = asyncio.Event()
        self._directory = around.directory / kept.assignment.id
        self.status = InstanceStatus(
            id=kept.assignment.id,
            node=kept.assignment.node,
            fleet=kept.assignment.fleet,
            state=S.FETCHING,
            since=around.clock.at(),
            port=kept.port,
            restarts=kept.restarts,
        )

    def drain(self) -> None:
        """Ask it to end; `run` returns when it has."""
        self._draining.set()

    async def run(self) -> None:
        """Keep it running until it is asked to drain; return when nothing of it is left."""
        living = asyncio.ensure_future(self._live())
        asked = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({living, asked}, return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                living.result()
        finally:
            for task in (living, asked):
                task.cancel()
            await asyncio.gather(living, asked, return_exceptions=True)
        await self._end()

    async def _live(self) -> None:
        while True:
            try:
                child = self._adopted() or await self._start()
                why = await self._watch(child)
            except AetherError as error:
                why = error.message
            restarts = self.kept.restarts + 1
            self._keep(child=None, restarts=restarts)
            delay_s = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** min(restarts - 1, 10))
            self._report(S.BACKOFF, why=why, pid=0, restarts=restarts, log_tail=self.log_tail())
            await self._around.clock.sleep(delay_s)

    def _adopted(self) -> Child | None:
        """Return the process that an earlier agent started, if it still runs."""
        child = self.kept.child
        return child if child is not None and is_alive(child) else None

    async def _start(self) -> Child:
        self._report(S.FETCHING)
        artifact = await self._around.fetch(self.spec)
        self._report(S.PREPARING)
        work_dir = await self._around.prepare(self.spec, artifact)
        env = await self._around.resolve(self.spec.env)
        runtime = self._around.runtime(self.spec.kind)
        home = self._directory / "home"
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        port = _free_port(self.kept.assignment.id)
        with driver_errors(self.spec.kind):
            command = runtime.command(artifact, work_dir, self.spec)
        child = spawn(
            command,
            env=self._environment(env, home, port),
            cwd=home,
            log_path=self.log_path,
            limits=self.spec.resources,
        )
        self._keep(child=child, port=port)
        self._report(S.STARTING, pid=child.pid, port=port, why="")
        return child

    def _environment(self, env: dict[str, str], home: Path, port: int) -> dict[str, str]:
        """Return all that the process sees: nothing of the agent's but PATH and LANG."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            **env,
            "PORT": str(port),
            "AETHER_SLICE": self.spec.slice,
            "AETHER_INSTANCE": self.kept.assignment.id,
            "AETHER_VERSION": self.spec.version,
            "AETHER_MESH_URL": self._around.mesh_url,
        }

    async def _watch(self, child: Child) -> str:
        """Follow the process's health; return why it is over."""
        ended = asyncio.ensure_future(wait_ended(child))
        health = asyncio.ensure_future(self._follow_health(child))
        try:
            await asyncio.wait({ended, health}, return_when=asyncio.FIRST_COMPLETED)
            # Also when it ended by itself: what it left behind in its session ends with it.
            await stop(child, grace_s=self.spec.grace_s, clock=self._around.clock)
            if health.done():
                return health.result()
            status = ended.result()
            return "ended" if status is None else f"ended with exit status {status}"
        finally:
            for task in (ended, health):
                task.cancel()
            await asyncio.gather(ended, health, return_exceptions=True)

    async def _follow_health(self, child: Child) -> str:
        """Report how it is; return why to give it up: not healthy for `start_s`."""
        check, clock = self.spec.health, self._around.clock
        passed, failed, ill_since_s = 0, 0, clock.now_s()
        well_since_s = 0.0
        while True:
            reason = await probe(self.kept.port, check.path, check.timeout_s)
            now_s = clock.now_s()
            if reason is None:
                passed, failed = passed + 1, 0
                if passed >= check.healthy_after and self.status.state != S.READY:
                    well_since_s = now_s
                    self._report(S.READY, pid=child.pid, port=self.kept.port, why="")
                is_forgiven = now_s - well_since_s > FORGIVEN_AFTER_S
                if self.kept.restarts and self.status.state == S.READY and is_forgiven:
                    self._keep(restarts=0)
            else:
                passed, failed = 0, failed + 1
                if self.status.state == S.READY and failed >= check.unhealthy_after:
                    ill_since_s = now_s
                    self._report(S.UNHEALTHY, why=reason)
                if self.status.state != S.READY and now_s - ill_since_s >= check.start_s:
                    return f"not healthy within {check.start_s:g} s: {reason}"
            rotate(self.log_path)
            starting = self.status.state == S.STARTING
            await clock.sleep(STARTING_INTERVAL_S if starting else check.interval_s)

    async def _end(self) -> None:
        child = self._adopted()
        if child is not None:
            # FETCHING: adopted and not asked yet how it is, so requests may be on their way to it.
            if self.status.state != S.STARTING:
                self._report(S.DRAINING, why="waiting for requests in flight")
                await self._wait_idle()
            self._report(S.STOPPING, why="")
            await stop(child, grace_s=self.spec.grace_s, clock=self._around.clock)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _wait_idle(self) -> None:
        try:
            async with asyncio.timeout(self.spec.drain_s):
                await self._around.wait_idle(self.status)
        except TimeoutError:
            logger.warning(
                "instance '{}' still had requests after {} s", self.status.id, self.spec.drain_s
            )

    @property
    def log_path(self) -> Path:
        return self._directory / "output.log"

    def log_tail(self) -> tuple[str, ...]:
        """Return the last lines of its output."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, self.log_path.stat().st_size - LOG_TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ()
        return tuple(lines[-LOG_TAIL_LINES:])

    def _report(self, state: InstanceState, **changes: object) -> None:
        self.status = replace(
            self.status,
            state=state,
            since=self._around.clock.at(),
            **changes,  # type: ignore[arg-type]
        )
        self._around.report(self.status)

    def _keep(self, **changes: object) -> None:
        self.kept = replace(self.kept, **changes)  # type: ignore[arg-type]
        self._directory.mkdir(parents=True, exist_ok=True)
        temporary = self._directory / "instance.json.new"
        temporary.write_bytes(encode(self.kept))
        temporary.replace(self._directory / "instance.json")


def kept_instances(directory: Path) -> list[Kept]:
    """Return what earlier agents started on this node."""
    return [decode(Kept, path.read_bytes()) for path in sorted(directory.glob("*/instance.json"))]


def _free_port(instance: str) -> int:
    """Return a port nobody listens on; each instance begins to look somewhere else."""
    span = LAST_PORT - FIRST_PORT + 1
    begin = sum(instance.encode()) * 7919 + os.getpid()
    for step in range(span):
        port = FIRST_PORT + (begin + step) % span
        with socket.socket() as probe_socket:
            try:
                probe_socket.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AetherError(f"no free port between {FIRST_PORT} and {LAST_PORT}")
