"""What every runtime must do, shown with real files and real processes."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from aether_core.blobs import name_and_version
from aether_core.clock import SystemClock
from aether_core.drivers import Runtime
from aether_core.errors import IntegrityError
from aether_core.model import InstanceSpec
from aether_core.plugins import build_driver, load_driver
from aether_core.probe import probe
from aether_core.process import is_alive, spawn, stop
from aether_core.testing.ports import free_port

GROUP = "aether.runtimes"
START_S = 60.0
GRACE_S = 5.0
POLL_S = 0.05


@dataclass(frozen=True)
class Stored:
    """An artifact as a node has it: named by its digest, never to be written to."""

    file: Path
    work_dir: Path
    spec: InstanceSpec


class RuntimeSuite:
    """Inherit, set `name`, and return a good artifact, which answers `GET /` on $PORT."""

    pytestmark = pytest.mark.asyncio

    name: ClassVar[str]
    entry: ClassVar[str] = ""  # Of the artifact, as its blueprint would say it.
    sees_truncation: ClassVar[bool] = True  # False where half an artifact is an artifact too.

    def artifact(self, directory: Path) -> Path:
        """Return a file called NAME-VERSION and the suffix; make it in `directory` if need be."""
        raise NotImplementedError

    @pytest.fixture
    def runtime(self) -> Runtime:
        built: Runtime = build_driver(GROUP, self.name)
        return built

    @pytest.fixture
    def good(self, tmp_path: Path) -> Stored:
        source = tmp_path / "source"
        source.mkdir()
        return self._stored(self.artifact(source), tmp_path)

    async def test_its_class_says_what_it_is(self) -> None:
        kind = load_driver(GROUP, self.name)
        assert isinstance(kind(), Runtime)
        assert kind.suffix.startswith(".")

    async def test_a_prepared_artifact_runs_and_answers(
        self, runtime: Runtime, good: Stored, tmp_path: Path
    ) -> None:
        await runtime.prepare(good.file, good.work_dir, good.spec)
        async with self._running(runtime, good, tmp_path / "one") as port:
            assert await probe(port, "/", START_S) is None

    async def test_two_instances_run_from_one_directory(
        self, runtime: Runtime, good: Stored, tmp_path: Path
    ) -> None:
        await runtime.prepare(good.file, good.work_dir, good.spec)
        async with (
            self._running(runtime, good, tmp_path / "one") as first,
            self._running(runtime, good, tmp_path / "two") as second,
        ):
            assert await probe(first, "/", START_S) is None
            assert await probe(second, "/", START_S) is None

    async def test_the_artifact_stays_as_it_was(self, runtime: Runtime, good: Stored) -> None:
        await runtime.prepare(good.file, good.work_dir, good.spec)
        assert hashlib.sha256(good.file.read_bytes()).hexdigest() == good.spec.sha256
        assert [path.name for path in good.file.parent.iterdir()] == [good.spec.sha256]

    async def test_the_command_is_decided_without_a_trace(
        self, runtime: Runtime, good: Stored
    ) -> None:
        await runtime.prepare(good.file, good.work_dir, good.spec)
        before = sorted(good.work_dir.rglob("*"))
        first = runtime.command(good.file, good.work_dir, good.spec)
        assert runtime.command(good.file, good.work_dir, good.spec) == first
        assert shutil.which(first[0]), f"'{first[0]}' is no program"
        assert sorted(good.work_dir.rglob("*")) == before

    async def test_noise_is_refused(self, runtime: Runtime, good: Stored, tmp_path: Path) -> None:
        await self._refuses(runtime, good, tmp_path, bytes(range(256)) * 16)

    async def test_an_empty_file_is_refused(
        self, runtime: Runtime, good: Stored, tmp_path: Path
    ) -> None:
        await self._refuses(runtime, good, tmp_path, b"")

    async def test_half_an_artifact_is_refused(
        self, runtime: Runtime, good: Stored, tmp_path: Path
    ) -> None:
        if not self.sees_truncation:
            pytest.skip(f"half an artifact is one too for '{self.name}'")
        whole = good.file.read_bytes()
        await self._refuses(runtime, good, tmp_path, whole[: len(whole) // 2])

    async def _refuses(
        self, runtime: Runtime, good: Stored, tmp_path: Path, content: bytes
    ) -> None:
        broken, work_dir = tmp_path / "broken", tmp_path / "unused"
        broken.write_bytes(content)
        work_dir.mkdir()
        with pytest.raises(IntegrityError) as refused:
            await runtime.prepare(broken, work_dir, good.spec)
        assert good.spec.artifact in refused.value.message

    def _stored(self, made: Path, tmp_path: Path) -> Stored:
        suffix = load_driver(GROUP, self.name).suffix
        name, version, _ = name_and_version(made.name, [suffix])
        sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
        file, work_dir = tmp_path / "sha256" / sha256, tmp_path / "prepared"
        for directory in (file.parent, work_dir):
            directory.mkdir()
        shutil.copyfile(made, file)
        file.chmod(0o444)
        artifact = f"{name}:{version}"
        return Stored(
            file, work_dir, InstanceSpec(name, version, artifact, sha256, self.name, self.entry)
        )

    @asynccontextmanager
    async def _running(self, runtime: Runtime, good: Stored, home: Path) -> AsyncIterator[int]:
        """Start an instance as a node does; yield its port once it answers."""
        port, log = free_port(), home / "log"
        home.mkdir()
        child = spawn(
            runtime.command(good.file, good.work_dir, good.spec),
            env=_environment(good.spec, home, port),
            cwd=home,
            log_path=log,
        )
        try:
            async with asyncio.timeout(START_S):
                while complaint := await probe(port, "/", START_S):
                    assert is_alive(child), f"it ended: {log.read_text()}"
                    assert "answered" not in complaint, f"{complaint}: {log.read_text()}"
                    await asyncio.sleep(POLL_S)
            yield port
        finally:
            await stop(child, grace_s=GRACE_S, clock=SystemClock())


def _environment(spec: InstanceSpec, home: Path, port: int) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "TMPDIR": str(home),
        "PORT": str(port),
        "AETHER_SLICE": spec.slice,
        "AETHER_INSTANCE": f"{spec.slice}-1",
        "AETHER_VERSION": spec.version,
        "AETHER_MESH_URL": "http://127.0.0.1:9",
    }
