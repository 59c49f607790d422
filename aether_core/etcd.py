"""The etcd member of a core node: found, checked, started, adopted. `store_etcd.py` talks to it."""

import asyncio
import re
import shutil
from pathlib import Path

from aether_core.boot import Boot, Peer, Peers
from aether_core.errors import AetherError

MINIMUM = (3, 4, 22)
# Can lose consistency after a crash: etcd's postmortem "v3.5 data inconsistency" of 2022.
REFUSED = ((3, 5, 0), (3, 5, 3))
# A lost leader is noticed after 0.5 s instead of etcd's default second.
HEARTBEAT_MS = 50
ELECTION_MS = 500
QUOTA_BYTES = 2 * 1024**3
INSTALL_HINT = "apt install etcd-server (Debian, Ubuntu) or brew install etcd"


def find(configured: str | None = None) -> Path:
    """Return the etcd program. Errors: AetherError when there is none."""
    found = shutil.which(configured or "etcd")
    if found is None:
        where = f"'{configured}' (setting etcd_path)" if configured else "etcd in PATH"
        raise AetherError(f"etcd not found: no {where}", hint=INSTALL_HINT)
    return Path(found)


async def check_version(program: Path) -> str:
    """Return etcd's version. Errors: AetherError when it is one that must not keep data."""
    process = await asyncio.create_subprocess_exec(
        program, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return accept_version(program, output.decode(errors="replace"))


def accept_version(program: Path, output: str) -> str:
    """Return the version in what `etcd --version` printed, if it may be used."""
    match = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", output)
    if match is None:
        raise AetherError(f"'{program}' does not say its etcd version", hint=INSTALL_HINT)
    version = (int(match[1]), int(match[2]), int(match[3]))
    text = ".".join(map(str, version))
    if version < MINIMUM:
        needed = ".".join(map(str, MINIMUM))
        raise AetherError(
            f"etcd {text} at '{program}' is too old: {needed} or newer is needed",
            hint=INSTALL_HINT,
        )
    if REFUSED[0] <= version < REFUSED[1]:
        raise AetherError(
            f"etcd {text} at '{program}' is refused: 3.5.0 to 3.5.2 can lose consistency",
            hint="install 3.5.3 or newer, or 3.4.22 or newer of 3.4",
        )
    return text


def command(program: Path, boot: Boot, peers: Peers, data_dir: Path) -> list[str]:
    """Return the argument list of the node's member; certificates are in `data_dir`/certs."""
    certs = data_dir / "certs"
    me = peers.of(boot.node)
    members = {peer.node: _peer_url(peer) for peer in peers.peers if peer.is_core}
    arguments = {
        "name": boot.node,
        "data-dir": str(data_dir / "etcd"),
        "listen-client-urls": f"https://{boot.bind}:{boot.ports.etcd_client}",
        "advertise-client-urls": client_url(me),
        "listen-peer-urls": f"https://{boot.bind}:{boot.ports.etcd_peer}",
        "initial-advertise-peer-urls": _peer_url(me),
        "initial-cluster": ",".join(f"{name}={url}" for name, url in sorted(members.items())),
        "initial-cluster-state": "new",
        "initial-cluster-token": boot.cluster,
        "client-cert-auth": "true",
        "trusted-ca-file": str(certs / "ca.pem"),
        "cert-file": str(certs / "node.pem"),
        "key-file": str(certs / "node.key"),
        "peer-client-cert-auth": "true",
        "peer-trusted-ca-file": str(certs / "ca.pem"),
        "peer-cert-file": str(certs / "node.pem"),
        "peer-key-file": str(certs / "node.key"),
        "heartbeat-interval": str(HEARTBEAT_MS),
        "election-timeout": str(ELECTION_MS),
        "quota-backend-bytes": str(QUOTA_BYTES),
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "logger": "zap",
        "log-level": "warn",
        # 3.4 serves its old API by default; 3.5 and later have it off.
        "enable-v2": "false",
    }
    return [str(program), *(f"--{name}={value}" for name, value in arguments.items())]


def client_url(peer: Peer) -> str:
    """Return where the member of `peer` answers clients."""
    return f"https://{peer.address}:{peer.ports.etcd_client}"


def _peer_url(peer: Peer) -> str:
    return f"https://{peer.address}:{peer.ports.etcd_peer}"
