"""What the processes hold: resident memory as the kernel counts it, in /proc/<pid>/status."""

import os
from pathlib import Path

import psutil

from tests.bench import floor
from tests.bench.figures import Figure, Goal, Of
from tests.bench.sizes import Sizes
from tests.e2e.desk import Desk, processes_in

MIB = 2**20
CHUNK_BYTES = 8 * MIB
SMALL_BYTES = MIB
SAMPLE_S = 0.005


def measure_memory(desk: Desk, sizes: Sizes) -> list[Figure]:
    """The agents at rest with a deployment, then how far each process grows in an upload."""
    small_mib = _upload(desk, "small", SMALL_BYTES)
    agents = [p for p in processes_in(desk.root / "data") if _is_agent(p)]
    resting = {agent.pid: _resident_mib(agent.pid, "VmRSS") for agent in agents}
    for pid in resting:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # The peak starts anew: proc(5).
    big_mib = _upload(desk, "big", sizes.upload_bytes)
    grown = [_resident_mib(pid, "VmHWM") - before for pid, before in resting.items()]
    size = f"{sizes.upload_bytes / 1e6:.0f} MB"
    return [
        Figure(
            "an agent at rest, with a deployment", "MiB", tuple(resting.values()),
            goal=Goal(Of.VALUE, 100.0), quantile=1.0,
        ),
        Figure(
            f"the agents' growth while {size} are uploaded, the largest", "MiB", tuple(grown),
            goal=Goal(Of.VALUE, 32.0), quantile=1.0,
        ),
        Figure(
            f"the command's peak while it uploads {size}", "MiB", (big_mib,), (small_mib,),
            "the same command with 1 MiB", Goal(Of.EXCESS, 32.0),
        ),
    ]  # fmt: skip


def _upload(desk: Desk, name: str, size_bytes: int) -> float:
    """Upload that many random bytes; return the command's peak in MiB."""
    file = desk.root / f"{name}-1.0.0.pyz"
    with file.open("wb") as target:
        for offset in range(0, size_bytes, CHUNK_BYTES):
            target.write(os.urandom(min(CHUNK_BYTES, size_bytes - offset)))
    running = desk.start("artifact", "upload", file)
    peak_mib = 0.0
    while running.poll() is None:
        peak_mib = max(peak_mib, _resident_mib(running.pid, "VmHWM"))
        floor.pause(SAMPLE_S)
    assert running.returncode == 0, f"the upload of {file.name} ended with {running.returncode}"
    return peak_mib


def _is_agent(process: psutil.Process) -> bool:
    return "aether_core.agent" in process.cmdline()


def _resident_mib(pid: int, field: str) -> float:
    """Return a field of the process's status; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    values = [line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(values[0]) / 1024 if values else 0.0
