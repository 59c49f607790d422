"""The API on its port: who is who by certificate over real TLS, live logs, hostile clients."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from aether_core import certs, keys
from aether_core.client import Client, PeerClient
from aether_core.clock import SystemClock
from aether_core.contexts import Context
from aether_core.errors import Forbidden, NotFound, Unavailable
from aether_core.model import FleetId, InstanceId, InstanceState, InstanceStatus, NodeId, Role
from aether_core.serve import LONGEST_HEAD_BYTES
from aether_core.store import put
from tests.cluster.conftest import Member, empty_store, free_port
from tests.cluster.nodes import BOUND_S, CLUSTER, SECRET, Api, running_api

STATUS = "/v1/bootstrap/status"


@pytest.fixture
async def api(lone_member: Member, tmp_path: Path) -> AsyncIterator[Api]:
    await empty_store(lone_member)
    async with (
        running_api(tmp_path / "node-1", lone_member.endpoint) as running,
        running.serving(),
    ):
        yield running


def context_of(api: Api, role: Role, *endpoints: str) -> Context:
    ca_pem = (api.node.data_dir / "certs" / certs.CA_FILE).read_text()
    return Context("test", (*endpoints, api.url), ca_pem, api.tokens[role])


def certified(
    directory: Path, *, cluster: str = CLUSTER, secret: str = SECRET, late: timedelta | None = None
) -> ssl.SSLContext:
    """Return the TLS settings of a node of a cluster, perhaps with a certificate from long ago."""
    now = SystemClock().at() - (late or timedelta(0))
    certs.write_node_certs(
        directory, certs.authority(cluster, secret), node=NodeId("node-2"), addresses=(), now=now
    )
    return certs.client_context(directory)


async def test_a_certificate_of_the_cluster_is_an_identity(api: Api, tmp_path: Path) -> None:
    peer = PeerClient(certified(tmp_path / "peer"))
    answer = await peer.get(api.node.peer(api.node.id), STATUS)
    await peer.close()
    assert answer["node"] == "node-1"


async def test_a_token_is_not_enough_where_a_node_is_asked_for(api: Api) -> None:
    async with Client(context_of(api, Role.ADMIN)) as client:
        with pytest.raises(Forbidden):
            await client.get(STATUS)


@pytest.mark.parametrize(
    "other",
    [
        {"cluster": "other"},
        {"secret": "the secret of somebody else"},
        {"late": timedelta(days=8)},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_other_certificates_are_refused(
    api: Api, tmp_path: Path, other: dict[str, Any]
) -> None:
    tls = certified(tmp_path / "stranger", **other)
    # It trusts the server, so that only the server can object.
    tls.load_verify_locations(api.node.data_dir / "certs" / certs.CA_FILE)
    peer = PeerClient(tls)
    with pytest.raises(Unavailable, match="does not answer"):
        await peer.get(api.node.peer(api.node.id), STATUS)
    await peer.close()


async def test_a_client_talks_to_its_own_cluster_only(api: Api, tmp_path: Path) -> None:
    stranger = certs.authority("other", SECRET).certificate_pem
    async with Client(Context("test", (api.url,), stranger, api.tokens[Role.ADMIN])) as client:
        with pytest.raises(Unavailable):
            await client.get("/v1/cluster")


async def test_a_node_that_cannot_answer_is_not_the_last_word(
    api: Api, lone_member: Member, tmp_path: Path
) -> None:
    """One endpoint is dead, one has no store: the third does what was asked, once."""
    dead = f"https://127.0.0.1:{free_port()}"
    async with running_api(tmp_path / "node-2", lone_member.endpoint, name="node-2") as cut_off:
        store, cut_off.node.store = cut_off.node.store, None
        async with (
            cut_off.serving() as url,
            Client(context_of(api, Role.ADMIN, dead, url)) as client,
        ):
            body = {"name": "x", "role": "viewer"}
            assert (await client.post("/v1/tokens", body))["name"] == "x"
            with pytest.raises(NotFound):
                await client.delete("/v1/tokens/0000")
        cut_off.node.store = store
    names = [json.loads(value)["name"] for value in await api.entries(keys.TOKENS)]
    assert names.count("x") == 1


async def test_a_head_without_end_is_cut(api: Api) -> None:
    tls = certs.trusting((api.node.data_dir / "certs" / certs.CA_FILE).read_text())
    port = api.node.boot.ports.api
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(b"GET /livez HTTP/1.1\r\nX: ")
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(ConnectionError):
            await _write_for_ever(writer)
    writer.close()


async def _write_for_ever(writer: asyncio.StreamWriter) -> None:
    for _ in range(1000):
        writer.write(b"x" * LONGEST_HEAD_BYTES)
        await writer.drain()


@pytest.fixture
async def logging_api(api: Api) -> Api:
    """The node with a slice `web` of one instance that has written three lines."""
    await _let_it_run(api)
    return api


async def _let_it_run(api: Api, name: str = "web-1") -> Path:
    directory = api.node.data_dir / "instances" / name
    directory.mkdir(parents=True)
    (directory / "output.log").write_bytes(b"one\ntwo\nthr\xffee\n")
    status = InstanceStatus(
        InstanceId(name), api.node.id, FleetId("web@1-a"), InstanceState.READY, api.clock.at()
    )
    key = keys.instance_status(api.node.id, status.id)
    revision = await api.node.joined_store().commit([put(key, status)])
    assert revision is not None
    await api.node.mirror.reach(revision)
    return directory / "output.log"


async def test_logs_show_the_last_lines(logging_api: Api) -> None:
    async with Client(context_of(logging_api, Role.VIEWER)) as client:
        found = [line async for line in client.lines("/v1/logs", name="web", lines=2)]
        assert found == [
            {"node": "node-1", "instance": "web-1", "line": "two"},
            {"node": "node-1", "instance": "web-1", "line": "thr\ufffdee"},
        ]
        assert [line async for line in client.lines("/v1/logs", name="web-1", lines=0)] == []
        with pytest.raises(NotFound):
            await anext(client.lines("/v1/logs", name="none"))


async def test_logs_follow_what_is_written_and_start_again_where_it_was_cut(
    logging_api: Api,
) -> None:
    file = logging_api.node.data_dir / "instances" / "web-1" / "output.log"
    async with Client(context_of(logging_api, Role.VIEWER)) as client:
        lines = client.lines("/v1/logs", name="web", lines=1, follow="true")
        async with asyncio.timeout(BOUND_S):
            assert (await anext(lines))["line"] == "thr\ufffdee"
            for text in ("now", "half"):
                with file.open("a") as log:
                    log.write(f"{text}\n")
                assert (await anext(lines))["line"] == text
            file.write_text("new\n")
            assert (await anext(lines))["line"] == "new"
            file.unlink()
            with pytest.raises(StopAsyncIteration):
                await anext(lines)


async def test_a_follower_who_leaves_leaves_nothing_behind(
    logging_api: Api,
) -> None:
    """Also one who reads slowly, while the instance writes more than anybody buffers."""
    file = logging_api.node.data_dir / "instances" / "web-1" / "output.log"
    async with Client(context_of(logging_api, Role.VIEWER)) as client:
        lines = client.lines("/v1/logs", name="web", lines=1, follow="true")
        async with asyncio.timeout(BOUND_S):
            await anext(lines)
            with file.open("ab") as log:
                log.write(b"x" * 99 + b"\n" + (b"y" * 999 + b"\n") * 20_000)
            await anext(lines)
            await lines.aclose()
    async with asyncio.timeout(BOUND_S):
        while _readers_of_logs():
            await asyncio.sleep(0.01)


def _readers_of_logs() -> list[str]:
    names = [repr(task.get_coro()) for task in asyncio.all_tasks()]
    return [name for name in names if "_merged" in name or "run_asgi" in name]


async def test_a_silent_instance_elsewhere_stays_in_the_stream(
    api: Api, lone_member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent for longer than anybody waits for an answer, and then heard."""
    monkeypatch.setattr("aether_core.api.logs.BEAT_S", 0.05)
    async with (
        running_api(tmp_path / "node-2", lone_member.endpoint, name="node-2") as other,
        other.serving(),
    ):
        file = await _let_it_run(other)
        key = keys.instance_status(other.node.id, InstanceId("web-1"))
        await api.until(lambda: api.node.mirror.entry(key) is not None)
        await api.node.client.close()
        monkeypatch.setattr("aether_core.client.TIMEOUT", httpx.Timeout(0.5, connect=3.0))
        api.node.client = PeerClient(certs.client_context(api.node.data_dir / "certs"))
        async with Client(context_of(api, Role.VIEWER)) as client, asyncio.timeout(BOUND_S):
            lines = client.lines("/v1/logs", name="web", lines=1, follow="true")
            assert (await anext(lines))["node"] == "node-2"
            waiting = asyncio.ensure_future(anext(lines))
            done, _ = await asyncio.wait({waiting}, timeout=1.5)
            assert not done
            with file.open("a") as log:
                log.write("at last\n")
            assert (await waiting)["line"] == "at last"
            await lines.aclose()


async def test_a_node_that_does_not_answer_is_named_in_the_stream(
    api: Api, lone_member: Member, tmp_path: Path
) -> None:
    async with running_api(tmp_path / "node-2", lone_member.endpoint, name="node-2") as other:
        await _let_it_run(other, "web-2")
        await _let_it_run(api)
        key = keys.instance_status(other.node.id, InstanceId("web-2"))
        await api.until(lambda: api.node.mirror.entry(key) is not None)
        async with Client(context_of(api, Role.VIEWER)) as client:
            found = [line async for line in client.lines("/v1/logs", name="web", lines=1)]
    assert {line["instance"]: line.get("line", line.get("lost")) for line in found} == {
        "web-1": "thr\ufffdee",
        "web-2": "node 'node-2' does not answer: ConnectError All connection attempts failed",
    }
