"""Children: started with exactly what was given, known by pid and start time, ended whole."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from aether_core.clock import SystemClock
from aether_core.errors import AetherError
from aether_core.model import Resources
from aether_core.process import (
    Child,
    is_alive,
    kill_strangers,
    load_child,
    machine_environment,
    rotate,
    save_child,
    spawn,
    stop,
    wait_ended,
)
from tests.unit.clocks import HandClock
from tests.unit.waiting import until

PYTHON = sys.executable
# In a process group of its own, which the signal to its parent's does not reach.
APART = "import os, signal; os.setpgid(0, 0); print('ready', flush=True); signal.pause()"
DEAF = "trap '' TERM; echo ready; while :; do sleep 1; done"


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Children that a test started: killed with their sessions, whatever happened."""
    started: list[Child] = []
    yield started
    for child in started:
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == child.pid:
                    process.kill()
            except (psutil.Error, OSError):
                continue


def start(children: list[Child], directory: Path, *argv: str, **options: object) -> Child:
    env = {"PATH": os.environ["PATH"]}
    log_path = directory / "log"
    child = spawn(argv, env=env, cwd=directory, log_path=log_path, **options)  # type: ignore[arg-type]
    children.append(child)
    return child


def printed(directory: Path) -> str:
    return (directory / "log").read_text()


def pids_in(directory: Path) -> set[int]:
    """Return the living processes that work in `directory`."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(directory) and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


async def test_a_child_sees_exactly_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AETHER_SECRET_CLUSTER_SECRET", "do not pass on")
    given = {"A": "\"quotes\" 'n' \n{braces}", "EMPTY": ""}
    code = "import os, json; print(json.dumps([dict(os.environ), os.getcwd(), os.getsid(0)]))"
    child = spawn([PYTHON, "-c", code], env=given, cwd=tmp_path, log_path=tmp_path / "log")
    assert await wait_ended(child) == 0
    seen, cwd, session = json.loads(printed(tmp_path))
    seen.pop("LC_CTYPE", None)  # Python sets it for itself.
    assert (seen, cwd, session) == (given, str(tmp_path), child.pid)


async def test_limits_bound_memory_and_files(tmp_path: Path, children: list[Child]) -> None:
    child = start(children, tmp_path, "sleep", "60", limits=Resources(0.0, 64 * 1024**2))
    process = psutil.Process(child.pid)
    assert process.rlimit(psutil.RLIMIT_DATA) == (128 * 1024**2, 128 * 1024**2)
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)


@pytest.mark.parametrize(
    ("argv", "cwd", "env", "expected"),
    [
        (["no-such-program"], ".", {}, "program 'no-such-program' not found"),
        (["./garbage"], ".", {}, "program './garbage' cannot be started: "),
        (["true"], "gone", {}, "program 'true' cannot be started: "),
        (["true"], ".", {"A": "secret\0"}, "program 'true' cannot be started: embedded null byte"),
    ],
)
def test_what_cannot_be_started_is_an_error_of_ours(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    cwd: str,
    env: dict[str, str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage").write_bytes(b"\x00\x01")
    (tmp_path / "garbage").chmod(0o755)
    with pytest.raises(AetherError) as caught:
        spawn(argv, env=env, cwd=tmp_path / cwd, log_path=tmp_path / "log")
    assert caught.value.message.startswith(expected)
    assert "secret" not in caught.value.message


async def test_is_alive_until_it_ends(tmp_path: Path, children: list[Child]) -> None:
    child = start(children, tmp_path, "sleep", "60")
    assert is_alive(child)
    os.kill(child.pid, signal.SIGKILL)
    assert await wait_ended(child) == -signal.SIGKILL
    assert not is_alive(child)


async def test_a_pid_that_another_process_has_is_not_signalled(
    tmp_path: Path, children: list[Child]
) -> None:
    child = start(children, tmp_path, "sleep", "60")
    earlier = replace(child, started=child.started - 1)
    assert not is_alive(earlier)
    await asyncio.wait_for(stop(earlier, grace_s=60.0, clock=HandClock()), 20)
    assert await asyncio.wait_for(wait_ended(earlier), 20) is None
    assert is_alive(child)


async def test_stop_asks_first(tmp_path: Path, children: list[Child]) -> None:
    script = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    child = start(children, tmp_path, "sh", "-c", script)
    await until(lambda: "ready" in printed(tmp_path))
    await stop(child, grace_s=60.0, clock=HandClock())
    assert not is_alive(child)
    assert "asked" in printed(tmp_path)


async def test_stop_kills_what_ignores_it_after_the_grace(
    tmp_path: Path, children: list[Child]
) -> None:
    child, clock = start(children, tmp_path, "sh", "-c", DEAF), HandClock()
    await until(lambda: "ready" in printed(tmp_path))
    stopping = asyncio.ensure_future(stop(child, grace_s=5.0, clock=clock))
    await until(lambda: clock.naps == [5.0])
    clock.advance(4.9)
    assert is_alive(child)
    clock.advance(0.2)
    await asyncio.wait_for(stopping, 20)
    assert not is_alive(child)


@pytest.mark.parametrize("ends_by_itself", [False, True])
async def test_stop_ends_grandchildren_too(
    tmp_path: Path, children: list[Child], ends_by_itself: bool
) -> None:
    last = "exit 3" if ends_by_itself else "wait"
    script = f'sh -c "$DEAF" & {PYTHON} -c "$APART" & {last}'
    env = {"PATH": os.environ["PATH"], "DEAF": DEAF, "APART": APART}
    child = spawn(["sh", "-c", script], env=env, cwd=tmp_path, log_path=tmp_path / "log")
    children.append(child)
    await until(lambda: printed(tmp_path).count("ready") == 2)
    if ends_by_itself:
        assert await wait_ended(child) == 3
    assert len(pids_in(tmp_path)) >= 2
    await asyncio.wait_for(stop(child, grace_s=0.0, clock=SystemClock()), 20)
    await until(lambda: not pids_in(tmp_path))


async def test_a_child_is_adopted_by_the_next_agent(tmp_path: Path, children: list[Child]) -> None:
    """The agent that started it has died: nobody but init is its parent any more."""
    starter = (
        "import sys; from pathlib import Path; from aether_core.process import *;"
        "here = Path(sys.argv[1]);"
        "child = spawn(['sleep', '60'], env={}, cwd=here, log_path=here / 'log');"
        "save_child(here / 'child.json', child)"
    )
    agent = await asyncio.create_subprocess_exec(PYTHON, "-c", starter, str(tmp_path))
    assert await agent.wait() == 0
    child = load_child(tmp_path / "child.json")
    assert child is not None
    children.append(child)
    waiting = asyncio.ensure_future(wait_ended(child))
    await stop(child, grace_s=60.0, clock=HandClock())
    assert await asyncio.wait_for(waiting, 20) is None  # Its status went to its parent.
    assert load_child(tmp_path / "child.json") is None


def test_no_child_is_kept(tmp_path: Path) -> None:
    assert load_child(tmp_path / "child.json") is None
    save_child(tmp_path / "child.json", Child(2**22 + 1, 5))  # Beyond Linux's largest pid.
    assert load_child(tmp_path / "child.json") is None


async def test_strangers_are_killed_and_families_spared(
    tmp_path: Path, children: list[Child]
) -> None:
    nested = "sh -c \"sh -c 'echo deep; sleep 60' & wait\" & wait"
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").mkdir()
    mine = start(children, tmp_path / "mine", "sh", "-c", nested)
    other = start(children, tmp_path / "other", "sleep", "60")
    elsewhere = start(children, tmp_path, "sleep", "60")
    await until(lambda: "deep" in printed(tmp_path / "mine"))
    family = pids_in(tmp_path / "mine")
    kill_strangers(tmp_path, [mine])
    await until(lambda: not is_alive(other))
    assert pids_in(tmp_path / "mine") == family
    assert is_alive(elsewhere)  # In the directory itself, not below it.


def test_a_machine_passes_on_what_its_programs_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("AETHER_SECRET_CLUSTER_SECRET", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    passed = machine_environment()
    assert passed["UV_OFFLINE"] == "1"
    assert passed["PATH"] == os.environ["PATH"]
    assert not [name for name in passed if "SECRET" in name]


async def test_a_log_is_cut_while_its_writer_keeps_it_open(
    tmp_path: Path, children: list[Child]
) -> None:
    script = "echo first; read go < fifo; echo second"
    os.mkfifo(tmp_path / "fifo")
    child = start(children, tmp_path, "sh", "-c", script)
    await until(lambda: printed(tmp_path) == "first\n")
    rotate(tmp_path / "log", limit_bytes=7)
    assert printed(tmp_path) == "first\n"
    rotate(tmp_path / "log", limit_bytes=6)
    assert (tmp_path / "log.1").read_text() == "first\n"
    (tmp_path / "fifo").write_text("go\n")
    assert await wait_ended(child) == 0
    assert printed(tmp_path) == "second\n"
    rotate(tmp_path / "no-log", limit_bytes=0)
