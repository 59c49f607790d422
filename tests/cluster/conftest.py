"""Real etcd members for the tests of this folder. A missing program fails; it never skips."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

START_TIMEOUT_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Member:
    """One etcd process, which a test may kill, pause and start again."""

    name: str
    client_port: int
    peer_port: int
    directory: Path
    command: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.client_port}"

    def start(self) -> None:
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)


async def wait_for_quorum(members: list[Member]) -> None:
    async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient() as client:
        for member in members:
            while True:
                try:
                    answer = await client.post(
                        f"{member.endpoint}/v3/kv/range", content='{"key": "AA=="}'
                    )
                    if answer.status_code == httpx.codes.OK:
                        break
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.02)


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[list[Member]]:
    """Three members with a quorum."""
    group = make_members(tmp_path, 3)
    for member in group:
        member.start()
    try:
        await wait_for_quorum(group)
        yield group
    finally:
        for member in group:
            end_member(member)


@pytest.fixture(scope="session")
def lone_member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """One member for all tests that only need a store; each empties it first."""
    member = make_members(tmp_path_factory.mktemp("etcd"), 1)[0]
    member.start()
    try:
        yield member
    finally:
        end_member(member)


def make_members(directory: Path, count: int) -> list[Member]:
    """Return members of one cluster, not started yet."""
    program = shutil.which("etcd")
    assert program, "these tests need etcd: apt install etcd-server"
    group = [Member(f"m{i}", free_port(), free_port(), directory) for i in range(count)]
    peers = ",".join(f"{m.name}=http://127.0.0.1:{m.peer_port}" for m in group)
    for member in group:
        peer = f"http://127.0.0.1:{member.peer_port}"
        member.command = [
            program,
            f"--name={member.name}",
            f"--data-dir={directory / member.name}",
            f"--listen-client-urls={member.endpoint}",
            f"--advertise-client-urls={member.endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={peers}",
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--log-level=error",
        ]
    return group


def end_member(member: Member) -> None:
    if member.process is not None and member.process.poll() is None:
        member.resume()
        member.kill()


async def empty_store(member: Member) -> None:
    """Forget what the test before left."""
    await wait_for_quorum([member])
    async with httpx.AsyncClient() as client:
        everything = {"key": "AA==", "range_end": "AA=="}
        answer = await client.post(f"{member.endpoint}/v3/kv/deleterange", json=everything)
        assert answer.status_code == httpx.codes.OK
