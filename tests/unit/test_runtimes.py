"""Runtimes: what is damaged or dangerous is refused; the commands say what will run."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from aether_core.drivers import Runtime
from aether_core.errors import IntegrityError
from aether_core.model import InstanceSpec, Resources
from aether_core.runtimes.jar import JarRuntime
from aether_core.runtimes.pyz import PyzRuntime
from aether_core.runtimes.tar_gz import TarballRuntime
from aether_core.runtimes.whl import WheelRuntime

PAYLOAD = bytes(range(256)) * 64


def spec(kind: str, entry: str = "", memory_bytes: int = 0) -> InstanceSpec:
    resources = Resources(0.0, memory_bytes)
    return InstanceSpec("web", "1", "web:1", "0" * 64, kind, entry, resources=resources)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", PAYLOAD)
    return file.getvalue()


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o755
    return info


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


RUNTIMES: dict[str, type[Runtime]] = {
    "jar": JarRuntime,
    "pyz": PyzRuntime,
    "whl": WheelRuntime,
    "tar_gz": TarballRuntime,
}


@pytest.mark.parametrize("kind", list(RUNTIMES))
@pytest.mark.parametrize(
    "damage", ["empty", "text", "half", "no end", "flipped", "zeroed", "other"]
)
async def test_a_damaged_artifact_is_refused(tmp_path: Path, kind: str, damage: str) -> None:
    whole = tarred((member("a"), PAYLOAD)) if kind == "tar_gz" else zipped()
    middle = len(whole) // 2
    content = {
        "empty": b"",
        "text": b"#!/bin/sh\necho I am no archive\n",
        "half": whole[:middle],
        "no end": whole[:-9],
        "flipped": flipped(whole, middle),
        "other": gzip.compress(PAYLOAD),
        "zeroed": whole[:middle] + bytes(40) + whole[middle + 40 :],
    }[damage]
    artifact = tmp_path / "artifact"
    artifact.write_bytes(content)
    (tmp_path / "work").mkdir()
    with pytest.raises(IntegrityError, match="web:1"):
        await RUNTIMES[kind]().prepare(artifact, tmp_path / "work", spec(kind, "a"))


@pytest.mark.parametrize("runtime", [JarRuntime(), PyzRuntime()])
async def test_no_flipped_byte_of_a_zip_raises_anything_else(
    tmp_path: Path, runtime: Runtime
) -> None:
    whole, artifact = zipped(), tmp_path / "artifact"
    for position in range(len(whole)):
        artifact.write_bytes(flipped(whole, position))
        try:
            await runtime.prepare(artifact, tmp_path, spec("jar"))
        except IntegrityError:
            continue


@pytest.mark.parametrize(
    "info",
    [
        member("../outside"),
        member("a/../../outside"),
        member("link", kind=tarfile.SYMTYPE, link="../.."),
        member("link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("hard", kind=tarfile.LNKTYPE, link="../outside"),
        member("device", kind=tarfile.CHRTYPE),
        member("pipe", kind=tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.linkname}",
)
async def test_a_tarball_that_would_leave_its_directory_is_refused(
    tmp_path: Path, info: tarfile.TarInfo
) -> None:
    work_dir, artifact = tmp_path / "deep" / "work", tmp_path / "artifact"
    work_dir.mkdir(parents=True)
    artifact.write_bytes(tarred((info, b"")))
    with pytest.raises(IntegrityError, match="cannot be unpacked"):
        await TarballRuntime().prepare(artifact, work_dir, spec("tar_gz", "run"))
    assert sorted(tmp_path.rglob("*")) == [artifact, work_dir.parent, work_dir]


async def test_a_tarball_is_unpacked_without_special_bits(tmp_path: Path) -> None:
    setuid, absolute = member("bin/run"), member("/etc/conf")
    setuid.mode = 0o4755
    artifact, work_dir = tmp_path / "artifact", tmp_path / "work"
    artifact.write_bytes(tarred((setuid, b"#!/bin/sh\n"), (absolute, b"x")))
    work_dir.mkdir()
    await TarballRuntime().prepare(artifact, work_dir, spec("tar_gz", "bin/run"))
    assert (work_dir / "bin" / "run").stat().st_mode & 0o7777 == 0o755
    assert (work_dir / "etc" / "conf").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("bin/run --port $PORT", ["--port", "8123"]),
        ("bin/run --port=${PORT} ${NOT_SET:-80}", ["--port=8123", "80"]),
        ("bin/run 'two words $PORT' \"it's\"", ["two words 8123", "it's"]),
        ("bin/run '; touch ran' '$(touch ran)' '`touch ran`' '$5' '\\'", None),
        ("bin/run '*' '~' '>ran' '&&' '\"'", None),
    ],
)
def test_the_entry_of_a_tarball_reaches_the_program(
    tmp_path: Path, entry: str, expected: list[str] | None
) -> None:
    program = tmp_path / "bin" / "run"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    command = TarballRuntime().command(tmp_path / "artifact", tmp_path, spec("tar_gz", entry))
    given = {"PORT": "8123", "PATH": os.defpath, "HOME": "/nowhere"}
    ran = subprocess.run(
        command, env=given, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=20
    )
    quoted = [word.strip("'") for word in entry.split(" '")[1:]]
    assert ran.stdout.splitlines() == (expected or quoted)
    assert not (tmp_path / "ran").exists()


def test_a_program_of_the_system_may_be_the_entry(tmp_path: Path) -> None:
    command = TarballRuntime().command(tmp_path / "a", tmp_path, spec("tar_gz", "sh -c true"))
    assert subprocess.run(command, check=True, timeout=20).returncode == 0


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            JarRuntime().command(Path("/a"), Path("/w"), spec("jar")),
            "java -XX:+ExitOnOutOfMemoryError -jar /a",
        ),
        (
            JarRuntime().command(Path("/a"), Path("/w"), spec("jar", memory_bytes=2**30)),
            "java -Xmx716m -XX:+ExitOnOutOfMemoryError -jar /a",
        ),
        (
            PyzRuntime().command(Path("/a"), Path("/w"), spec("pyz")),
            f"{sys.base_prefix}/bin/python3 -I -u /a",
        ),
        (
            WheelRuntime().command(Path("/a"), Path("/w"), spec("whl", "serve")),
            "/w/venv/bin/serve",
        ),
    ],
)
def test_commands(command: list[str], expected: str) -> None:
    assert " ".join(command) == expected


def test_a_wheel_with_an_application_is_served_by_uvicorn_on_its_port() -> None:
    command = WheelRuntime().command(Path("/a"), Path("/w"), spec("whl", "shop:app"))
    assert command[:3] == ["/bin/sh", "-c", 'exec "$0" "$@" --port "$PORT"']
    assert command[3:9] == [
        "/w/venv/bin/python",
        "-m",
        "uvicorn",
        "shop:app",
        "--host",
        "127.0.0.1",
    ]
