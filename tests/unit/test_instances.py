"""One instance with a tiny real program: health, backoff, adoption, drain, environment."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest

from aether_core.drivers import API_VERSION, Runtime
from aether_core.errors import AetherError, Unavailable
from aether_core.instances import Instance, Kept, Surroundings, kept_instances
from aether_core.model import (
    Assignment,
    FleetId,
    HealthCheck,
    InstanceId,
    InstanceSpec,
    InstanceState,
    InstanceStatus,
    NodeId,
)
from aether_core.process import Child, is_alive, stop
from tests.unit.clocks import HandClock
from tests.unit.waiting import LIMIT_S, LOOK_AGAIN_S, until

S = InstanceState

#: Says what it sees once it listens, then answers 200, or 500 while the file ILL is there.
SERVER = """
import http.server, json, os, pathlib
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if pathlib.Path(os.environ["ILL"]).exists() else 200)
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Answer)
print(json.dumps(dict(os.environ)), flush=True)
server.serve_forever()
"""


@dataclass
class TinyRuntime:
    """Runs what `entry` holds: Python for the server above, shell for anything else."""

    api_version: ClassVar[int] = API_VERSION
    suffix: ClassVar[str] = ".tiny"

    async def prepare(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> None:
        raise AssertionError("the node prepares, not the instance")

    def command(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> list[str]:
        if spec.entry == SERVER:
            return [sys.executable, "-S", "-E", "-c", SERVER]
        return ["sh", "-c", spec.entry] if spec.entry else ["no-such-program"]


@dataclass
class World:
    """A node as its instances see it."""

    directory: Path
    clock: HandClock = field(default_factory=HandClock)
    said: list[InstanceStatus] = field(default_factory=list)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    asked_idle: list[InstanceStatus] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    missing: str = ""  # Why the artifact cannot be fetched.
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)

    def around(self) -> Surroundings:
        runtime: Runtime = TinyRuntime()
        return Surroundings(
            directory=self.directory / "instances",
            clock=self.clock,
            mesh_url="http://127.0.0.1:7402",
            fetch=self.fetch,
            prepare=self.prepare,
            runtime=lambda kind: runtime,
            resolve=self.resolve,
            wait_idle=self.wait_idle,
            report=self.said.append,
        )

    async def fetch(self, spec: InstanceSpec) -> Path:
        if self.missing:
            raise Unavailable(self.missing)
        return self.directory / "artifact"

    async def prepare(self, spec: InstanceSpec, artifact: Path) -> Path:
        return self.directory

    async def resolve(self, env: dict[str, str]) -> dict[str, str]:
        return env | self.secrets

    async def wait_idle(self, status: InstanceStatus) -> None:
        self.asked_idle.append(status)
        await self.idle.wait()

    def run(self, kept: Kept) -> Instance:
        instance = Instance(self.around(), kept)
        self.tasks.append(asyncio.ensure_future(instance.run()))
        self.instances.append(instance)
        return instance

    async def agent_dies(self) -> None:
        self.tasks[-1].cancel()
        await asyncio.wait([self.tasks[-1]])
        self.said.clear()

    async def reaches(self, state: InstanceState) -> InstanceStatus:
        """Let time pass until the instance is in that state."""
        async with asyncio.timeout(LIMIT_S):
            while self.said == [] or self.said[-1].state != state:
                self.clock.advance(0.1)
                await asyncio.sleep(LOOK_AGAIN_S)
        return self.said[-1]

    async def listens(self, times: int) -> None:
        """Return when the server was started that often; meanwhile no time passes."""
        log_path = self.instances[-1].log_path
        await until(lambda: log_path.exists() and log_path.read_text().count("\n") == times)

    async def ends(self, times: int) -> InstanceStatus:
        """Return when it has ended that often."""
        await until(lambda: self.states.count(S.BACKOFF) == times)
        return self.said[-1]

    @property
    def states(self) -> list[InstanceState]:
        return [status.state for status in self.said]

    @property
    def ill(self) -> Path:
        return self.directory / "ill"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    world.idle.set()
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    for instance in world.instances:
        if instance.kept.child is not None:
            stopping = asyncio.ensure_future(
                stop(instance.kept.child, grace_s=0.0, clock=world.clock)
            )
            await asyncio.wait_for(stopping, LIMIT_S)


def kept(world: World, entry: str = SERVER, **changes: object) -> Kept:
    spec = InstanceSpec(
        slice="web",
        version="1.0.0",
        artifact="web:1.0.0",
        sha256="0",
        kind="tiny",
        entry=entry,
        env={"ILL": str(world.ill)},
        health=HealthCheck(path="/health", interval_s=0.1, timeout_s=10.0, start_s=1e6),
    )
    spec = replace(spec, **changes)  # type: ignore[arg-type]
    return Kept(Assignment(InstanceId("web-1"), NodeId("n1"), FleetId("web@1.0.0-abc")), spec)


async def test_it_becomes_ready(world: World) -> None:
    world.run(kept(world))
    status = await world.reaches(S.READY)
    assert world.states == [S.FETCHING, S.PREPARING, S.STARTING, S.READY]
    assert status.pid
    assert 20_000 <= status.port < 30_000
    assert (status.restarts, status.why, status.node) == (0, "", "n1")


async def test_the_slice_sees_its_own_environment_and_no_secret_of_the_agent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AETHER_SECRET_CLUSTER_SECRET", "do not pass on")
    monkeypatch.setenv("HCLOUD_TOKEN", "do not pass on")
    world.secrets = {"DB": "postgres://u:\"p'{}$x\n@h", "PORT": "1", "AETHER_SLICE": "x"}
    instance = world.run(kept(world))
    status = await world.reaches(S.READY)
    seen = json.loads(instance.log_path.read_text())
    home = instance.log_path.parent / "home"
    seen.pop("LC_CTYPE", None)  # Python sets it for itself.
    assert seen == {
        "PATH": os.environ["PATH"],
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "ILL": str(world.ill),
        "DB": world.secrets["DB"],
        "PORT": str(status.port),
        "AETHER_SLICE": "web",
        "AETHER_INSTANCE": "web-1",
        "AETHER_VERSION": "1.0.0",
        "AETHER_MESH_URL": "http://127.0.0.1:7402",
    }
    on_disk = (instance.log_path.parent / "instance.json").read_text()
    assert "postgres" not in on_disk


async def test_health_goes_and_comes_back(world: World) -> None:
    world.run(kept(world))
    pid = (await world.reaches(S.READY)).pid
    world.ill.touch()
    assert (await world.reaches(S.UNHEALTHY)).why == "GET /health answered 500"
    world.ill.unlink()
    status = await world.reaches(S.READY)
    assert (status.pid, status.why, status.restarts) == (pid, "", 0)


IMPATIENT = HealthCheck(path="/health", interval_s=0.1, timeout_s=10.0, start_s=5.0)


async def test_what_never_becomes_healthy_is_started_again(world: World) -> None:
    world.ill.touch()
    world.run(kept(world, health=IMPATIENT))
    await world.listens(1)
    status = await world.reaches(S.BACKOFF)
    assert status.why == "not healthy within 5 s: GET /health answered 500"
    assert (status.pid, status.restarts) == (0, 1)
    world.ill.unlink()
    world.clock.advance(1.0)
    await world.listens(2)
    assert (await world.reaches(S.READY)).restarts == 1


async def test_what_stays_unhealthy_is_started_again(world: World) -> None:
    world.run(kept(world, health=IMPATIENT))
    await world.listens(1)
    pid = (await world.reaches(S.READY)).pid
    world.ill.touch()
    await world.reaches(S.BACKOFF)
    assert world.states[-2:] == [S.UNHEALTHY, S.BACKOFF]
    world.ill.unlink()
    world.clock.advance(1.0)
    await world.listens(2)
    assert (await world.reaches(S.READY)).pid != pid


async def test_each_crash_waits_longer_and_shows_the_last_words(world: World) -> None:
    world.run(kept(world, "echo last words; exit 3"))
    for restarts in range(1, 10):
        status = await world.ends(restarts)
        assert (status.why, status.restarts) == ("ended with exit status 3", restarts)
        assert status.log_tail == ("last words",) * restarts
        world.clock.advance(60.0)
    waits_s = [nap for nap in world.clock.naps if nap >= 1 and nap != 10.0]
    assert waits_s[:9] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_the_log_shown_is_bounded(world: World) -> None:
    world.run(kept(world, "for i in $(seq 1000); do echo line $i; done; printf '\\377'; exit 1"))
    tail = (await world.reaches(S.BACKOFF)).log_tail
    assert len(tail) == 20
    assert tail[-2:] == ("line 1000", "\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
    ("missing", "entry", "why"),
    [
        ("artifact 'web:1.0.0' is not in the cluster any more", SERVER, "artifact 'web:1.0.0' is"),
        ("", "", "program 'no-such-program' not found"),
    ],
)
async def test_what_cannot_start_backs_off_and_says_why(
    world: World, missing: str, entry: str, why: str
) -> None:
    world.missing = missing
    world.run(kept(world, entry))
    status = await world.reaches(S.BACKOFF)
    assert status.why.startswith(why)
    assert status.restarts == 1


async def test_the_next_agent_adopts_it(world: World) -> None:
    world.run(kept(world))
    before = await world.reaches(S.READY)
    await world.agent_dies()
    (found,) = kept_instances(world.directory / "instances")
    world.run(found)
    after = await world.reaches(S.READY)
    assert (after.pid, after.port) == (before.pid, before.port)
    assert world.states == [S.READY]


async def test_the_next_agent_starts_anew_what_died_meanwhile(world: World) -> None:
    first = world.run(kept(world))
    before = await world.reaches(S.READY)
    await world.agent_dies()
    assert first.kept.child is not None
    await stop(first.kept.child, grace_s=60.0, clock=world.clock)
    (found,) = kept_instances(world.directory / "instances")
    world.run(found)
    assert (await world.reaches(S.READY)).pid != before.pid
    assert world.states == [S.FETCHING, S.PREPARING, S.STARTING, S.READY]


async def test_a_reused_pid_is_not_adopted(world: World) -> None:
    first = world.run(kept(world))
    before = await world.reaches(S.READY)
    await world.agent_dies()
    assert first.kept.child is not None
    stranger = Child(first.kept.child.pid, first.kept.child.started - 1)
    world.run(replace(first.kept, child=stranger))
    assert (await world.reaches(S.READY)).pid != before.pid
    assert is_alive(first.kept.child)


async def test_drain_waits_for_requests_then_leaves_nothing(world: World) -> None:
    instance = world.run(kept(world))
    await world.reaches(S.READY)
    child = instance.kept.child
    assert child is not None
    instance.drain()
    await until(lambda: world.asked_idle)
    assert world.states[-1] == S.DRAINING
    assert is_alive(child)
    world.idle.set()
    await asyncio.wait_for(world.tasks[-1], LIMIT_S)
    assert world.states[-2:] == [S.DRAINING, S.STOPPING]
    assert not is_alive(child)
    assert list((world.directory / "instances").iterdir()) == []


async def test_drain_does_not_wait_for_ever(world: World) -> None:
    instance = world.run(kept(world, drain_s=0.01))
    await world.reaches(S.READY)
    instance.drain()
    await asyncio.wait_for(world.tasks[-1], LIMIT_S)
    assert world.states[-1] == S.STOPPING


async def test_an_adopted_instance_drains_gracefully_before_its_first_check(world: World) -> None:
    first = world.run(kept(world))
    await world.reaches(S.READY)
    await world.agent_dies()
    world.run(first.kept).drain()
    await until(lambda: world.asked_idle)
    assert first.kept.child is not None
    assert is_alive(first.kept.child)
    world.idle.set()
    await asyncio.wait_for(world.tasks[-1], LIMIT_S)
    assert world.states == [S.DRAINING, S.STOPPING]


@pytest.mark.parametrize("entry", ["exit 3", "sleep 60"])
async def test_what_never_served_is_drained_at_once(world: World, entry: str) -> None:
    instance = world.run(kept(world, entry))
    await world.reaches(S.BACKOFF if "exit" in entry else S.STARTING)
    instance.drain()
    await asyncio.wait_for(world.tasks[-1], LIMIT_S)
    assert world.asked_idle == []
    assert list((world.directory / "instances").iterdir()) == []


async def test_what_ended_by_itself_leaves_nothing_behind(world: World) -> None:
    world.run(kept(world, "sleep 600 & echo $!; exit 3"))
    status = await world.reaches(S.BACKOFF)
    await until(lambda: not Path(f"/proc/{status.log_tail[0]}/cmdline").read_bytes())


async def test_restarts_are_forgiven_after_a_minute_of_health(world: World) -> None:
    health = HealthCheck(interval_s=0.1, timeout_s=10.0, healthy_after=2, start_s=1e6)
    instance = world.run(replace(kept(world, health=health), restarts=3))
    await world.reaches(S.READY)
    assert instance.kept.restarts == 3
    world.clock.advance(50.0)
    await asyncio.sleep(0)
    assert instance.kept.restarts == 3
    async with asyncio.timeout(LIMIT_S):
        while instance.kept.restarts:
            world.clock.advance(5.0)
            await asyncio.sleep(LOOK_AGAIN_S)


async def test_two_instances_take_two_ports(world: World) -> None:
    world.run(kept(world))
    other = replace(
        kept(world), assignment=Assignment(InstanceId("web-2"), NodeId("n1"), FleetId("web@1"))
    )
    world.run(other)
    async with asyncio.timeout(LIMIT_S):
        while len({s.id for s in world.said if s.state == S.READY}) < 2:
            world.clock.advance(0.1)
            await asyncio.sleep(LOOK_AGAIN_S)
    assert len({s.port for s in world.said if s.state == S.READY}) == 2


async def test_a_defect_of_ours_is_not_swallowed(world: World) -> None:
    async def broken(spec: InstanceSpec, artifact: Path) -> Path:
        raise ZeroDivisionError

    instance = Instance(replace(world.around(), prepare=broken), kept(world))
    with pytest.raises(ZeroDivisionError):
        await instance.run()
    assert not issubclass(ZeroDivisionError, AetherError)
