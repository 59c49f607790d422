"""Real etcd members for the tests of this folder. A missing program fails; it never skips."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
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
    program = shutil.which("etcd")
    assert program, "these tests need etcd: apt install etcd-server"
    group = [Member(f"m{i}", free_port(), free_port(), tmp_path) for i in range(3)]
    peers = ",".join(f"{m.name}=http://127.0.0.1:{m.peer_port}" for m in group)
    for member in group:
        peer = f"http://127.0.0.1:{member.peer_port}"
        member.command = [
            program,
            f"--name={member.name}",
            f"--data-dir={tmp_path / member.name}",
            f"--listen-client-urls={member.endpoint}",
            f"--advertise-client-urls={member.endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={peers}",
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--log-level=error",
        ]
        member.start()
    try:
        await wait_for_quorum(group)
        yield group
    finally:
        for member in group:
            if member.process is not None and member.process.poll() is None:
                member.resume()
                member.kill()
