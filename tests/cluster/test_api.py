"""The node's API from outside: who may ask what, and what is answered when it goes wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from loguru import logger

from aether_core import keys
from aether_core.api.auth import RANKS
from aether_core.api.limits import LONGEST_BODY_BYTES
from aether_core.client import REQUEST_HEADER, result
from aether_core.errors import (
    AetherError,
    ConfigError,
    Forbidden,
    NoQuorum,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from aether_core.model import Role, TokenRecord
from tests.cluster.conftest import Member, empty_store, end_member, make_members, wait_for_quorum
from tests.cluster.nodes import Api, running_api

#: What each route needs, written out: a change of it must be meant.
NEEDS: dict[str, Role | str | None] = {
    "GET /livez": None,
    "GET /v1/openapi.json": Role.VIEWER,
    "GET /v1/cluster": Role.VIEWER,
    "GET /v1/nodes": Role.VIEWER,
    "GET /v1/artifacts": Role.VIEWER,
    "GET /v1/artifacts/{name}/{version}": Role.VIEWER,
    "PUT /v1/artifacts/{name}/{version}": Role.OPERATOR,
    "DELETE /v1/artifacts/{name}/{version}": Role.OPERATOR,
    "GET /v1/uploads/{sha256}": Role.OPERATOR,
    "GET /v1/blobs/{sha256}": "node",
    "POST /v1/plans": Role.VIEWER,
    "POST /v1/deployments": Role.OPERATOR,
    "POST /v1/deployments/ask": Role.OPERATOR,
    "GET /v1/deployments": Role.VIEWER,
    "GET /v1/deployments/current": Role.VIEWER,
    "DELETE /v1/blueprints/{name}": Role.OPERATOR,
    "GET /v1/slices": Role.VIEWER,
    "GET /v1/instances": Role.VIEWER,
    "POST /v1/slices/{name}/scale": Role.OPERATOR,
    "GET /v1/logs": Role.VIEWER,
    "GET /v1/node/logs/{instance}": "node",
    "POST /v1/tokens": Role.ADMIN,
    "GET /v1/tokens": Role.ADMIN,
    "DELETE /v1/tokens/{identity}": Role.ADMIN,
    "GET /v1/bootstrap/status": "node",
    "POST /v1/bootstrap/join": "node",
    "POST /v1/bootstrap/init": "node",
}
PLAIN = {"name": "someone", "role": "viewer"}


@pytest.fixture
async def api(lone_member: Member, tmp_path: Path) -> AsyncIterator[Api]:
    await empty_store(lone_member)
    async with running_api(tmp_path / "node-1", lone_member.endpoint) as running:
        yield running


def guarded() -> list[str]:
    return [name for name, need in NEEDS.items() if need is not None]


def requirements(route: APIRoute) -> list[Any]:
    """Return what the route's dependencies ask for."""
    found = [getattr(d.call, "__aether_requires__", None) for d in route.dependant.dependencies]
    return [one for one in found if one is not None]


async def ask(client: httpx.AsyncClient, name: str, **request: Any) -> httpx.Response:
    """Send what the route named so would take, more or less."""
    method, path = name.split(" ")
    filled = path.format(
        name="x", version="1", sha256="0" * 64, identity="0000", instance="x-1"
    ).replace("/v1/logs", "/v1/logs?name=x")
    body = request or ({"json": {}} if method == "POST" else {})
    return await client.request(method, filled, **body)


def rebuilt(response: httpx.Response) -> AetherError:
    """Return the error that a client makes of the answer."""
    with pytest.raises(AetherError) as caught:
        result(response)
    assert response.headers["content-type"] == "application/problem+json"
    return caught.value


async def test_every_route_says_who_may_ask(api: Api) -> None:
    """Walk what is really served: a route without a requirement answers everybody."""
    found: dict[str, Any] = {}
    for served in iter_route_contexts(api.app.routes):
        route = served.original_route
        assert isinstance(route, APIRoute), f"{route} has no requirement that could be read"
        needs = requirements(route)
        assert len(needs) <= 1, route.path
        for method in route.methods or ():
            found[f"{method} {route.path}"] = needs[0] if needs else None
    assert found == NEEDS


@pytest.mark.parametrize("name", guarded())
async def test_nothing_is_told_without_a_good_token(api: Api, name: str) -> None:
    identity = api.tokens[Role.ADMIN].split("_")[1]
    bad = ["", "nonsense", "aet_", "aet__", "aet_00000000_x", f"aet_{identity}_wrong"]
    for token in bad:
        async with api.asks(token=token) as client:
            error = rebuilt(await ask(client, name))
        expected = Forbidden if NEEDS[name] == "node" else Unauthenticated
        assert type(error) is expected, token


@pytest.mark.parametrize("name", guarded())
async def test_a_role_opens_what_it_should_and_no_more(api: Api, name: str) -> None:
    need = NEEDS[name]
    for role in Role:
        async with api.asks(role) as client:
            response = await ask(client, name)
        if need == "node" or RANKS[role] < RANKS[Role(str(need))]:
            assert type(rebuilt(response)) is Forbidden, role
        else:
            assert response.status_code not in (401, 403), (role, response.text)


async def test_only_livez_answers_everybody(api: Api) -> None:
    async with api.asks() as client:
        assert (await client.get("/livez")).json() == {"status": "alive"}
        for path in ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"):
            assert type(rebuilt(await client.get(path))) is NotFound
        refusal = await client.get("/v1/cluster")
        assert refusal.headers["www-authenticate"] == "Bearer"


async def test_a_token_ends_when_it_expires_or_is_revoked(api: Api) -> None:
    async with api.asks(Role.ADMIN) as admin:
        made = (await admin.post("/v1/tokens", json={**PLAIN, "expires_in_s": 60})).json()
        async with api.asks(token=made["token"]) as client:
            assert (await client.get("/v1/nodes")).status_code == 200
            api.clock.shift = timedelta(seconds=61)
            error = rebuilt(await client.get("/v1/nodes"))
            assert type(error) is Unauthenticated
            assert "expired" in error.message
        lasting = (await admin.post("/v1/tokens", json=PLAIN)).json()
        async with api.asks(token=lasting["token"]) as client:
            assert (await client.get("/v1/nodes")).status_code == 200
            assert (await admin.delete(f"/v1/tokens/{lasting['id']}")).status_code == 200
            assert type(rebuilt(await client.get("/v1/nodes"))) is Unauthenticated


async def test_a_tokens_secret_is_nowhere_but_in_its_answer(api: Api) -> None:
    heard: list[str] = []
    sink = logger.add(lambda message: heard.append(str(message)), level=0)
    async with api.asks(Role.ADMIN) as admin:
        made = (await admin.post("/v1/tokens", json=PLAIN)).json()
        listed = (await admin.get("/v1/tokens")).text
    async with api.asks(token=made["token"] + "x") as client:
        refused = (await client.get("/v1/nodes")).text
    logger.remove(sink)
    secret = made["token"].split("_", 2)[2]
    kept = b"".join(await api.entries("/")).decode()
    for text in (kept, listed, refused, "".join(heard)):
        assert secret not in text
    record = api.node.mirror.get(TokenRecord, keys.token(made["id"]))
    assert record is not None
    assert record.sha256 not in listed
    assert record.sha256 in kept


async def test_a_node_that_has_just_begun_does_not_call_tokens_unknown(api: Api) -> None:
    api.node.mirror.revision = 0
    async with api.asks(Role.ADMIN) as client:
        response = await client.get("/v1/cluster")
    assert type(rebuilt(response)) is Unavailable


async def test_changes_and_refused_ones_are_audited_and_reads_are_not(api: Api) -> None:
    async with api.asks(Role.VIEWER) as viewer, api.asks(Role.ADMIN) as admin:
        await viewer.get("/v1/cluster")
        await viewer.post("/v1/tokens", json=PLAIN)
        made = (await admin.post("/v1/tokens", json=PLAIN)).json()
        await admin.delete("/v1/tokens/0000")
    async with api.asks(peer="bootstrap") as node:
        await node.post("/v1/bootstrap/join", json={"peers": []})
    found = await api.entries(keys.AUDIT)
    lines = [json.loads(line) for line in found]
    assert [(line["who"], line["what"], line["status"]) for line in lines] == [
        ("viewer-node-1", "POST /v1/tokens", 403),
        ("admin-node-1", "POST /v1/tokens", 200),
        ("admin-node-1", "DELETE /v1/tokens/0000", 404),
        ("node bootstrap", "POST /v1/bootstrap/join", 422),
    ]
    assert all(line["from"] and line["node"] == "node-1" and line["at"] for line in lines)
    assert made["token"].encode() not in b"".join(found)


async def test_a_plan_leaves_the_store_as_it_was(api: Api) -> None:
    before = await api.node.joined_store().revision()
    async with api.asks(Role.OPERATOR) as client:
        blueprint = {
            "blueprint": {"name": "shop", "version": "1"},
            "slices": [{"name": "web", "artifact": "web:1"}],
        }
        await client.post("/v1/plans", json={"blueprint": blueprint})
    assert await api.node.joined_store().revision() == before


async def test_a_token_cannot_pass_for_a_node_in_the_audit_log(api: Api) -> None:
    async with api.asks(Role.ADMIN) as admin:
        for name in ("node node-3", "a\nb", "\x1b[31m", "", "x" * 101):
            answer = await admin.post("/v1/tokens", json={"name": name, "role": "admin"})
            assert type(rebuilt(answer)) is ConfigError, name


async def test_a_request_sent_twice_makes_one_token(api: Api) -> None:
    headers = {REQUEST_HEADER: "once"}
    async with api.asks(Role.ADMIN) as admin:
        first = (await admin.post("/v1/tokens", json=PLAIN, headers=headers)).json()
        again = (await admin.post("/v1/tokens", json=PLAIN, headers=headers)).json()
        other = (await admin.post("/v1/tokens", json=PLAIN)).json()
        assert first["id"] == again["id"] != other["id"]
        listed = (await admin.get("/v1/tokens")).json()["tokens"]
        assert len(listed) == len(Role) + 2
    async with api.asks(token=again["token"]) as client:
        assert (await client.get("/v1/nodes")).status_code == 200
    async with api.asks(token=first["token"]) as client:
        assert type(rebuilt(await client.get("/v1/nodes"))) is Unauthenticated


async def test_an_id_is_remembered_for_its_own_request_only(api: Api) -> None:
    headers = {REQUEST_HEADER: "once"}
    async with api.asks(Role.ADMIN) as admin:
        ids = [(await admin.post("/v1/tokens", json=PLAIN)).json()["id"] for _ in range(2)]
        for identity in ids:
            done = await admin.delete(f"/v1/tokens/{identity}", headers=headers)
            assert done.json() == {"revoked": identity}
            again = await admin.delete(f"/v1/tokens/{identity}", headers=headers)
            assert again.json() == {"revoked": identity}
        assert type(rebuilt(await admin.delete(f"/v1/tokens/{ids[0]}"))) is NotFound


async def test_changes_go_on_after_the_store_lost_the_leases(api: Api) -> None:
    """As when the machine slept for longer than they live, while its own clock stood still."""
    async with api.asks(Role.ADMIN) as admin:
        for attempt in range(2):
            headers = {REQUEST_HEADER: f"request-{attempt}"}
            made = await admin.post("/v1/tokens", json=PLAIN, headers=headers)
            assert made.status_code == 200, made.text
            for entry in (await api.node.joined_store().list("/aether-")).entries:
                await api.node.joined_store().revoke(entry.lease)


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"name": "x"}, "role"),
        ({"name": "x", "role": "king"}, "role"),
        ({**PLAIN, "rolle": "admin"}, "rolle"),
        ({**PLAIN, "expires_in_s": 0}, "expires_in_s"),
        ({**PLAIN, "expires_in_s": 10**15}, "expires_in_s"),
    ],
)
async def test_a_wrong_body_is_an_error_of_configuration(api: Api, body: Any, key: str) -> None:
    async with api.asks(Role.ADMIN) as admin:
        response = await admin.post("/v1/tokens", json=body)
    error = rebuilt(response)
    assert response.status_code == 400
    assert isinstance(error, ConfigError)
    assert [problem.key for problem in error.problems] == [key]


@pytest.mark.parametrize(
    "content", [b"{", b'"\xff', b"[" * 100_000, b'{"name": ' + b"9" * 10_000 + b"}"]
)
async def test_what_is_no_json_is_an_error_of_the_sender(api: Api, content: bytes) -> None:
    async with api.asks(Role.ADMIN) as admin:
        headers = {"Content-Type": "application/json"}
        response = await admin.post("/v1/tokens", content=content, headers=headers)
    assert response.status_code == 400
    rebuilt(response)


async def test_a_body_is_not_collected_before_its_sender_is_known(api: Api) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * LONGEST_BODY_BYTES:
            sent += 64 * 1024
            yield b" " * (64 * 1024)

    async with api.asks() as client:
        response = await client.post(
            "/v1/deployments", content=endless(), headers={"Content-Type": "application/json"}
        )
    assert response.status_code == 413
    assert str(LONGEST_BODY_BYTES) in rebuilt(response).message
    assert sent < 2 * LONGEST_BODY_BYTES


async def test_an_unexpected_error_is_a_reference_and_an_audit_line(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    sink = logger.add(lambda message: heard.append(str(message)), level="ERROR")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a detail for the log only")

    monkeypatch.setattr("aether_core.api.tokens.new_token", broken)
    async with api.asks(Role.ADMIN) as admin:
        response = await admin.post("/v1/tokens", json=PLAIN)
    logger.remove(sink)
    error = rebuilt(response)
    assert response.status_code == 500
    assert error.message == "internal error"
    assert "a detail" not in response.text
    reference = error.hint.split("reference ")[1].split()[0]
    assert any(reference in line and "a detail" in line for line in heard)
    assert json.loads((await api.entries(keys.AUDIT))[-1])["status"] == 500


async def test_a_path_nobody_serves_is_an_error_that_clients_know(api: Api) -> None:
    async with api.asks(Role.VIEWER) as client:
        assert type(rebuilt(await client.get("/v2/cluster"))) is NotFound
        response = await client.patch("/v1/cluster")
        assert response.status_code == 405
        assert "method not allowed" in rebuilt(response).message


async def test_without_a_majority_nothing_is_claimed(tmp_path: Path) -> None:
    member = make_members(tmp_path, 1)[0]
    member.start()
    try:
        await wait_for_quorum([member])
        async with running_api(tmp_path / "node-1", member.endpoint) as api:
            member.kill()
            async with api.asks(Role.ADMIN) as admin:
                for response in (
                    await admin.get("/v1/cluster"),
                    await admin.post("/v1/tokens", json=PLAIN),
                    await admin.delete("/v1/tokens/0000", headers={REQUEST_HEADER: "x"}),
                ):
                    assert response.status_code == 503
                    assert int(response.headers["retry-after"]) > 0
                    assert type(rebuilt(response)) is NoQuorum
    finally:
        end_member(member)


async def test_a_node_that_waits_for_its_peers_says_so(api: Api) -> None:
    store, api.node.store = api.node.store, None
    async with api.asks(Role.ADMIN) as client:
        error = rebuilt(await client.get("/v1/cluster"))
    api.node.store = store
    assert type(error) is NoQuorum
    assert "has not joined" in error.message


async def test_a_node_behind_the_store_says_so_instead_of_waiting(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aether_core.node.REACH_TIMEOUT_S", 0.1)
    reached = asyncio.Event()

    async def never(_: int) -> None:
        await reached.wait()

    monkeypatch.setattr(api.node.mirror, "reach", never)
    async with api.asks(Role.VIEWER) as client:
        assert type(rebuilt(await client.get("/v1/cluster"))) is Unavailable
