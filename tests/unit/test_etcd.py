"""Which etcd may keep a cluster's data, and what it is started with."""

from pathlib import Path

import pytest

from aether_core.boot import Boot, Peer, Peers
from aether_core.errors import AetherError
from aether_core.etcd import accept_version, check_version, command, find
from aether_core.model import NodeId, Ports

PROGRAM = Path("/usr/bin/etcd")


def said(version: str) -> str:
    return f"etcd Version: {version}\nGit SHA: 0\nGo Version: go1.19\nGo OS/Arch: linux/amd64\n"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3.4.22", "3.4.22"),
        ("3.4.37", "3.4.37"),
        ("3.5.3", "3.5.3"),
        ("3.5.21", "3.5.21"),
        ("3.6.0-rc.1", "3.6.0"),
        ("4.0.0", "4.0.0"),
    ],
)
def test_versions_that_may_be_used(version: str, expected: str) -> None:
    assert accept_version(PROGRAM, said(version)) == expected


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("3.4.21", "is too old: 3.4.22 or newer is needed"),
        ("3.3.25", "is too old: 3.4.22 or newer is needed"),
        ("2.9.99", "is too old: 3.4.22 or newer is needed"),
        ("3.5.0", "is refused: 3.5.0 to 3.5.2 can lose consistency"),
        ("3.5.1", "is refused: 3.5.0 to 3.5.2 can lose consistency"),
        ("3.5.2", "is refused: 3.5.0 to 3.5.2 can lose consistency"),
    ],
)
def test_versions_that_may_not(version: str, reason: str) -> None:
    with pytest.raises(AetherError) as caught:
        accept_version(PROGRAM, said(version))
    assert caught.value.message == f"etcd {version} at '/usr/bin/etcd' {reason}"
    assert caught.value.hint


@pytest.mark.parametrize(
    "output", ["", "bash: etcd: no such file", "Version: 3.5.9", said("3.5"), said("latest")]
)
def test_what_is_no_etcd(output: str) -> None:
    with pytest.raises(AetherError, match="does not say its etcd version"):
        accept_version(PROGRAM, output)


async def test_the_etcd_of_this_machine_may_be_used() -> None:
    assert await check_version(find())


def test_an_etcd_that_is_not_there_is_named_with_its_setting() -> None:
    with pytest.raises(AetherError, match=r"etcd not found: no '/no/etcd' \(setting etcd_path\)"):
        find("/no/etcd")


def test_members_speak_mutual_tls_only_and_know_each_other() -> None:
    def peer(number: int, is_core: bool) -> Peer:
        ports = Ports(*(number * 10 + offset for offset in range(6)))
        return Peer(NodeId(f"n{number}"), f"10.0.0.{number}", ports, is_core, f"m{number}")

    peers = Peers((peer(2, True), peer(1, True), peer(3, False)))
    boot = Boot("prod", NodeId("n1"), "local", peers.of(NodeId("n1")).ports, "0.0.0.0", True, "x")  # noqa: S104
    words = command(PROGRAM, boot, peers, Path("/data"))
    options = dict(word.removeprefix("--").split("=", 1) for word in words[1:])
    assert words[0] == "/usr/bin/etcd"
    assert options["initial-cluster"] == "n1=https://10.0.0.1:15,n2=https://10.0.0.2:25"
    assert options["listen-client-urls"] == "https://0.0.0.0:14"
    assert options["advertise-client-urls"] == "https://10.0.0.1:14"
    assert (options["client-cert-auth"], options["peer-client-cert-auth"]) == ("true", "true")
    assert not [word for word in words if "http://" in word]
    assert "x" not in [value for name, value in options.items() if name != "name"]
