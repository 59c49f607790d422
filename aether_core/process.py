"""Children that outlive us: etcd, Envoy and instances run on when the agent is killed.

A child leads its own session and is known by pid and start time, so that a pid which the system
gave to another process is never signalled. Its output goes straight to a file.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from aether_core.clock import Clock
from aether_core.errors import AetherError
from aether_core.model import Resources, decode, encode

POLL_S = 0.2  # Only where the system has no pidfd (macOS).
# A runaway log is cut when it is this long; one older part is kept.
LOG_LIMIT_BYTES = 16 * 1024**2
OPEN_FILES = 65_536
#: Besides UV_*: what a machine's own programs need to find things and to reach a package index.
MACHINE_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    # Said by whoever starts the machine, heard by its agent.
    "AETHER_DISABLE_PLUGINS",
    "AETHER_TRACE_HOOKS",
)


@dataclass(frozen=True)
class Child:
    """A process we started, now or in an earlier life. `started`: the kernel's start ticks."""

    pid: int
    started: int


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log_path: Path,
    limits: Resources | None = None,
) -> Child:
    """Start a program in its own session with exactly `env`; output is appended to `log_path`.

    Errors: AetherError when the program cannot be started.
    """
    if shutil.which(argv[0]) is None:
        raise AetherError(f"program '{argv[0]}' not found", hint="install it, or set its path")
    try:
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                close_fds=True,
            )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument or variable.
        raise AetherError(f"program '{argv[0]}' cannot be started: {error}") from error
    _reaped[process.pid] = process
    child = Child(process.pid, _started(process.pid))
    _limit(process.pid, limits)
    return child


def machine_environment() -> dict[str, str]:
    """Return this process's environment less what only its user's shell knows: tokens, secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in MACHINE_VARIABLES or name.startswith("UV_")
    }


def machine_capacity() -> Resources:
    """Return the cores and the memory of this machine."""
    return Resources(float(os.cpu_count() or 1), psutil.virtual_memory().total)


def is_alive(child: Child) -> bool:
    """Return whether this very process runs. A zombie does not."""
    process = _reaped.get(child.pid)
    if process is not None and process.poll() is not None:
        return False
    try:
        same = _started(child.pid) == child.started
        return same and psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


async def wait_ended(child: Child) -> int | None:
    """Wait until the process is gone; return its exit status where we are its parent."""
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(child.pid)
    except (AttributeError, OSError):
        while is_alive(child):  # noqa: ASYNC110  There is nothing that could tell us.
            await asyncio.sleep(POLL_S)
        return _status(child)
    ended = asyncio.Event()
    try:
        if is_alive(child):
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return _status(child)


async def stop(child: Child, *, grace_s: float, clock: Clock) -> None:
    """Ask the whole session to end, kill what is left of it after the grace; return when gone."""
    _signal(child, signal.SIGTERM)
    waiting = asyncio.ensure_future(wait_ended(child))
    grace = asyncio.ensure_future(clock.sleep(grace_s))
    try:
        await asyncio.wait({waiting, grace}, return_when=asyncio.FIRST_COMPLETED)
        _signal(child, signal.SIGKILL)
        await waiting
    finally:
        waiting.cancel()
        grace.cancel()
    # What the leader left behind in its session: its group id cannot be reused while they live.
    for process in _session(child):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_strangers(directory: Path, known: Iterable[Child]) -> None:
    """Kill what works below `directory` and is in no session of the `known` children."""
    sessions = {child.pid for child in known}
    for process in psutil.process_iter():
        try:
            is_inside = process.cwd().startswith(f"{directory}{os.sep}")
            if is_inside and os.getsid(process.pid) not in sessions:
                process.kill()
        except (psutil.Error, OSError):
            continue  # Ended meanwhile, or another user's.


def load_child(path: Path) -> Child | None:
    """Return the child kept in `path` if it still runs."""
    try:
        child = decode(Child, path.read_bytes())
    except FileNotFoundError:
        return None
    return child if is_alive(child) else None


def save_child(path: Path, child: Child) -> None:
    """Keep the child for our next life."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(encode(child))
    temporary.replace(path)


def rotate(path: Path, *, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
    """Move a log that grew too long to `<path>.1` while its writer keeps the file open.

    Copied and cut: a line written between the two is lost. The alternative, a process that passes
    the output on, costs memory for every instance and loses more when it dies.
    """
    try:
        if path.stat().st_size < limit_bytes:
            return
    except FileNotFoundError:
        return
    shutil.copyfile(path, path.with_name(path.name + ".1"))
    os.truncate(path, 0)


#: Our own children, whose exit status only we can collect.
_reaped: dict[int, subprocess.Popen[bytes]] = {}


def _status(child: Child) -> int | None:
    process = _reaped.get(child.pid)
    if process is None:
        return None
    status = process.poll()
    if status is not None:
        del _reaped[child.pid]
    return status


def _signal(child: Child, number: signal.Signals) -> None:
    if is_alive(child):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)


def _session(child: Child) -> list[psutil.Process]:
    """Return the living processes of the child's session that started after it."""
    found = []
    for process in psutil.process_iter():
        try:
            in_session = os.getsid(process.pid) == child.pid
            if in_session and process.pid != child.pid and _started(process.pid) >= child.started:
                found.append(process)
        except OSError:
            continue
    return found


def _started(pid: int) -> int:
    """Return when the process began, as the kernel counts; never changed by a clock's jump."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        # No /proc (macOS), or the process is gone, which raises NoSuchProcess.
        return int(psutil.Process(pid).create_time() * 1000)
    # Field 22 of proc(5); the second field may itself hold spaces and parentheses.
    return int(stat.rpartition(")")[2].split()[19])


def _limit(pid: int, limits: Resources | None) -> None:
    """Bound what the process may take.

    RLIMIT_AS would refuse what a JVM merely reserves; RLIMIT_DATA counts what can be written to,
    which on Linux is what memory pressure comes from. Twice the reservation, because allocators
    reserve ahead; `-Xmx` in the jar's runtime keeps Java's heap below it.
    """
    if not hasattr(resource, "prlimit"):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        files = min(OPEN_FILES, hard) if hard != resource.RLIM_INFINITY else OPEN_FILES
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, hard))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        if limits is not None and limits.memory_bytes:
            size = limits.memory_bytes * 2
            resource.prlimit(pid, resource.RLIMIT_DATA, (size, size))
