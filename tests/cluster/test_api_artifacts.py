"""Artifacts through the API: streamed, resumed, verified, immutable, kept while needed."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from aether_core import certs, keys
from aether_core.client import REQUEST_HEADER, result
from aether_core.errors import (
    AetherError,
    ConfigError,
    Conflict,
    DriverNotFound,
    IntegrityError,
    NotFound,
    Refused,
)
from aether_core.model import ArtifactRecord, ArtifactState, Fleet, FleetId, InstanceSpec, Role
from aether_core.store import put
from tests.cluster.conftest import Member, empty_store
from tests.cluster.nodes import BOUND_S, Api, ended, running_api

BYTES = b"print('hello')\n" * 1000


@pytest.fixture
async def api(lone_member: Member, tmp_path: Path) -> AsyncIterator[Api]:
    await empty_store(lone_member)
    async with running_api(tmp_path / "node-1", lone_member.endpoint) as running:
        yield running


async def upload(
    client: httpx.AsyncClient,
    content: Any = BYTES,
    *,
    of: bytes = BYTES,
    name: str = "web/1",
    **changed: Any,
) -> httpx.Response:
    """Send `content` as if it were `of`."""
    query = {
        "kind": "pyz",
        "sha256": hashlib.sha256(of).hexdigest(),
        "size_bytes": len(of),
        "offset": 0,
        **changed,
    }
    return await client.put(f"/v1/artifacts/{name}", params=query, content=content)


def error_in(response: httpx.Response) -> AetherError:
    with pytest.raises(AetherError) as caught:
        result(response)
    return caught.value


async def test_an_upload_is_acknowledged_when_it_is_on_disk(api: Api) -> None:
    async with api.asks(Role.OPERATOR) as client:
        stored = (await upload(client)).json()
        assert stored["uploaded"] is True
        assert stored["state"] == "STORED"
        assert stored["copies"] == ["node-1"]
        assert stored["by"] == "operator-node-1"
        assert api.node.blobs.path(stored["sha256"]).read_bytes() == BYTES
        shown = (await client.get("/v1/artifacts/web/1")).json()
        listed = (await client.get("/v1/artifacts")).json()["artifacts"]
    assert [shown] == listed
    assert shown["sha256"] == stored["sha256"]


async def test_a_version_never_changes(api: Api) -> None:
    other = BYTES + b"#"
    async with api.asks(Role.OPERATOR) as client:
        first = (await upload(client)).json()
        again = (await upload(client)).json()
        assert again == {**first, "uploaded": False}
        error = error_in(await upload(client, other, of=other))
        assert type(error) is Conflict
        assert "other bytes" in error.message
        assert (await client.get("/v1/artifacts/web/1")).json()["sha256"] == first["sha256"]


async def test_an_upload_that_was_cut_goes_on_where_it_stopped(api: Api) -> None:
    sha256, half = hashlib.sha256(BYTES).hexdigest(), len(BYTES) // 2
    async with api.asks(Role.OPERATOR) as client:
        error = error_in(await upload(client, BYTES[:half]))
        assert type(error) is IntegrityError
        assert "goes on" in error.hint
        assert (await client.get("/v1/artifacts/web/1")).json()["state"] == "STAGED"
        state = (await client.get(f"/v1/uploads/{sha256}")).json()
        assert state == {"received": half, "whole": False}
        wrong = error_in(await upload(client, BYTES[10:], offset=10))
        assert type(wrong) is IntegrityError
        done = await upload(client, BYTES[half:], offset=half)
        assert done.json()["state"] == "STORED"
        state = (await client.get(f"/v1/uploads/{sha256}")).json()
        assert state == {"received": len(BYTES), "whole": True}
    assert api.node.blobs.path(sha256).read_bytes() == BYTES


async def test_bytes_that_are_not_what_was_announced_are_thrown_away(api: Api) -> None:
    sha256 = hashlib.sha256(BYTES).hexdigest()
    async with api.asks(Role.OPERATOR) as client:
        error = error_in(await upload(client, b"x" * len(BYTES)))
        assert type(error) is IntegrityError
        assert error.fields["expected"] == sha256
        state = (await client.get(f"/v1/uploads/{sha256}")).json()
        assert state == {"received": 0, "whole": False}
        assert (await upload(client)).json()["state"] == "STORED"


async def test_more_than_was_announced_is_not_even_received(api: Api) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * 1024**2:
            sent += 64 * 1024
            yield bytes(64 * 1024)

    async with api.asks(Role.OPERATOR) as client:
        error = error_in(await upload(client, endless()))
    assert type(error) is IntegrityError
    assert sent < 1024**2


async def test_more_than_the_disk_has_is_refused_before_a_byte(api: Api) -> None:
    async with api.asks(Role.OPERATOR) as client:
        error = error_in(await upload(client, size_bytes=2**60))
    assert type(error) is Refused
    assert api.node.mirror.all(ArtifactRecord, keys.ARTIFACTS) == []


@pytest.mark.parametrize(
    ("name", "changed", "kind"),
    [
        ("we:b/1", {}, ConfigError),
        ("web/1%0A", {}, ConfigError),
        (".web/1", {}, ConfigError),
        ("web/1", {"sha256": ".."}, ConfigError),
        ("web/1", {"sha256": "A" * 64}, ConfigError),
        ("web/1", {"size_bytes": 0}, ConfigError),
        ("web/1", {"offset": -1}, ConfigError),
        ("web/1", {"kind": "../whl"}, ConfigError),
        ("web/1", {"kind": "nonsense"}, DriverNotFound),
        ("web/1", {"kinds": "whl"}, ConfigError),
    ],
)
async def test_what_no_blueprint_could_use_is_not_stored(
    api: Api, name: str, changed: dict[str, Any], kind: type[AetherError]
) -> None:
    async with api.asks(Role.OPERATOR) as client:
        response = await upload(client, name=name, **changed)
    assert type(error_in(response)) is kind
    assert response.status_code == 400
    assert api.node.mirror.all(ArtifactRecord, keys.ARTIFACTS) == []


async def test_digests_are_no_paths(api: Api) -> None:
    for path in ("/v1/uploads/%2E%2E", "/v1/blobs/%2E%2E", f"/v1/blobs/{'g' * 64}"):
        async with api.asks(peer="node-2") as client:
            response = await client.send(
                client.build_request("GET", httpx.URL("https://node", raw_path=path.encode()))
            )
        assert type(error_in(response)) is ConfigError, path


async def test_deleting_frees_a_version_once(api: Api) -> None:
    headers = {REQUEST_HEADER: "once"}
    async with api.asks(Role.OPERATOR) as client:
        sha256 = (await upload(client)).json()["sha256"]
        first = await client.delete("/v1/artifacts/web/1", headers=headers)
        again = await client.delete("/v1/artifacts/web/1", headers=headers)
        assert first.json() == again.json() == {"deleted": "web:1"}
        assert type(error_in(await client.delete("/v1/artifacts/web/1"))) is NotFound
        await until(lambda: not api.node.blobs.has(sha256))
        assert await api.entries(keys.COPIES) == []


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not holds():
            await asyncio.sleep(0.01)


async def test_what_runs_is_not_deleted(api: Api) -> None:
    async with api.asks(Role.OPERATOR) as client:
        sha256 = (await upload(client)).json()["sha256"]
        fleet = Fleet(
            FleetId("web@1-abc"), "shop", InstanceSpec("web", "1", "web:1", sha256, "pyz"), 1
        )
        await api.node.joined_store().commit([put(keys.fleet(fleet.id), fleet)])
        error = error_in(await client.delete("/v1/artifacts/web/1"))
    assert type(error) is Refused
    assert "web@1-abc" in error.message
    assert api.node.blobs.has(sha256)


async def test_a_lost_upload_does_not_keep_back_the_others(
    lone_member: Member, tmp_path: Path
) -> None:
    """Its record names two holders and its bytes are nowhere; another artifact still spreads."""
    await empty_store(lone_member)
    endpoint = lone_member.endpoint
    async with (
        running_api(tmp_path / "node-1", endpoint) as one,
        running_api(tmp_path / "node-2", endpoint, name="node-2") as two,
        one.serving(),
        two.serving(),
        one.asks(Role.OPERATOR) as client,
    ):
        await one.until(lambda: len(one.node.mirror.under(keys.NODE_STATUSES)) == 2)
        cut = await upload(client, BYTES[:5], name="aaa/1")
        assert type(error_in(cut)) is IntegrityError
        other = BYTES * 2
        stored = (await upload(client, other, of=other, name="bbb/1")).json()
        assert stored["copies"] == ["node-1", "node-2"]
        assert two.node.blobs.path(stored["sha256"]).read_bytes() == other
        assert one.node.mirror.all(ArtifactRecord, keys.ARTIFACTS)[0].state == ArtifactState.STAGED


async def test_bytes_that_came_whole_before_a_node_ended_are_used(
    lone_member: Member, tmp_path: Path
) -> None:
    """All of them came, and the agent ended before it had verified them."""
    await empty_store(lone_member)
    endpoint, sha256 = lone_member.endpoint, hashlib.sha256(BYTES).hexdigest()
    partial = tmp_path / "node-2" / "artifacts" / "partial"
    partial.mkdir(parents=True)
    (partial / sha256).write_bytes(BYTES)
    async with (
        running_api(tmp_path / "node-1", endpoint) as one,
        running_api(tmp_path / "node-2", endpoint, name="node-2") as two,
        one.serving(),
        two.serving(),
        one.asks(Role.OPERATOR) as client,
    ):
        await one.until(lambda: len(one.node.mirror.under(keys.NODE_STATUSES)) == 2)
        assert (await upload(client)).json()["copies"] == ["node-1", "node-2"]


async def test_large_uploads_stream(api: Api) -> None:
    """200 MiB over TLS: the process must not grow by more than a small part of it."""
    block, count = bytes(256 * 1024), 800
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(block)
    size_bytes, grown_bytes = count * len(block), 0
    process = psutil.Process()
    begun_bytes = process.memory_info().rss

    async def blocks() -> AsyncIterator[bytes]:
        nonlocal grown_bytes
        for _ in range(count):
            grown_bytes = max(grown_bytes, process.memory_info().rss - begun_bytes)
            yield block

    async with api.serving() as url, secure(api, url, Role.OPERATOR) as client:
        query = f"kind=pyz&sha256={digest.hexdigest()}&size_bytes={size_bytes}"
        response = await client.put(f"/v1/artifacts/big/1?{query}", content=blocks())
        assert response.json()["state"] == "STORED", response.text
    assert grown_bytes < 48 * 1024**2


async def test_a_refusal_reaches_a_sender_in_the_middle_of_its_body(api: Api) -> None:
    other = b"other bytes"

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield bytes(256 * 1024)

    async with api.serving() as url, secure(api, url, Role.OPERATOR) as client:
        assert (await upload(client)).status_code == 200
        response = await upload(client, blocks(), of=other, size_bytes=200 * 256 * 1024)
        assert type(error_in(response)) is Conflict


async def test_a_sender_who_leaves_can_go_on(api: Api) -> None:
    sha256, half = hashlib.sha256(BYTES).hexdigest(), len(BYTES) // 2
    has_sent = asyncio.Event()

    async def half_of_it() -> AsyncIterator[bytes]:
        yield BYTES[:half]
        has_sent.set()
        await asyncio.Event().wait()

    async with api.serving() as url, secure(api, url, Role.OPERATOR) as client:
        async with secure(api, url, Role.OPERATOR) as leaving:
            sending = asyncio.ensure_future(upload(leaving, half_of_it()))
            await has_sent.wait()
            await until(lambda: api.node.blobs.received(sha256) >= half)
            await ended(sending)
        done = await upload(client, BYTES[half:], offset=half)
        assert done.json()["state"] == "STORED"


def secure(api: Api, url: str, role: Role) -> httpx.AsyncClient:
    ca_pem = (api.node.data_dir / "certs" / certs.CA_FILE).read_text()
    return httpx.AsyncClient(
        verify=certs.trusting(ca_pem),
        base_url=url,
        headers={"Authorization": f"Bearer {api.tokens[role]}"},
        timeout=BOUND_S,
        trust_env=False,
    )
