"""Plans, deployments and scaling through the API: what is refused, and that nothing happens twice.

No leader runs here: a deployment that has begun stays where the API put it.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from aether_core import keys
from aether_core.api.begin import MAX_SLICES
from aether_core.client import REQUEST_HEADER, result
from aether_core.deployment import Deployment
from aether_core.errors import (
    AetherError,
    ConfigError,
    Conflict,
    DriverNotFound,
    NotFound,
    Refused,
)
from aether_core.model import (
    ArtifactRecord,
    ArtifactState,
    Fleet,
    FleetId,
    InstanceSpec,
    Role,
    Route,
    RouteTable,
    SliceRecord,
    to_plain,
)
from aether_core.store import Put, put
from tests.cluster.conftest import Member, empty_store
from tests.cluster.nodes import Api, running_api

SHA256 = hashlib.sha256(b"web").hexdigest()


@pytest.fixture
async def api(lone_member: Member, tmp_path: Path) -> AsyncIterator[Api]:
    """A node whose store has the artifacts web:1 and web:2."""
    await empty_store(lone_member)
    directory = tmp_path / "node-1"
    async with running_api(directory, lone_member.endpoint, is_replicating=False) as running:
        node = running.node
        await write(
            running,
            *(
                put(
                    keys.artifact("web", version),
                    ArtifactRecord(
                        "web",
                        version,
                        "pyz",
                        3,
                        SHA256 if version == "1" else "f" * 64,
                        ArtifactState.STORED,
                        (node.id,),
                        node.clock.at(),
                        "test",
                    ),
                )
                for version in ("1", "2")
            ),
        )
        yield running


@pytest.fixture
async def client(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    async with api.asks(Role.OPERATOR) as one:
        yield one


async def write(api: Api, *writes: Put) -> None:
    revision = await api.node.joined_store().commit(writes)
    assert revision is not None
    await api.node.mirror.reach(revision)


def blueprint(of: str = "shop", **changes: Any) -> dict[str, Any]:
    """Return a blueprint of one slice, with changes to that slice."""
    piece = {"name": f"{of}-web", "artifact": "web:1", "route": {"prefix": f"/{of}"}}
    return {"blueprint": {"name": of, "version": "1"}, "slices": [{**piece, **changes}]}


def wish(**changes: Any) -> dict[str, Any]:
    return {"blueprint": blueprint(**changes)}


def error_in(response: httpx.Response) -> AetherError:
    with pytest.raises(AetherError) as caught:
        result(response)
    return caught.value


def words(error: AetherError) -> str:
    problems = error.problems if isinstance(error, ConfigError) else ()
    return " ".join([error.message, *map(str, problems)])


async def running_web(api: Api, *, instances: int = 1) -> Fleet:
    """Write what a finished deployment of web:1 at "/" would have left."""
    spec = InstanceSpec("web", "1", "web:1", SHA256, "pyz")
    fleet = Fleet(FleetId("web@1-abc123"), "other", spec, instances)
    document = blueprint("other", name="web", scale={"min": 1, "max": 5})
    await write(
        api,
        put(keys.blueprint("other"), document),
        put(keys.slice_record("web"), SliceRecord("web", "other")),
        put(keys.fleet(fleet.id), fleet),
        put(keys.ROUTES, RouteTable((Route("*", "/", "web"),), {"web": {fleet.id: 10_000}})),
    )
    return fleet


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/deployments"])
@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (wish(artifact="web:9"), ConfigError, "there is web:1, web:2"),
        (
            {**wish(), "strategy": "cannary"},
            DriverNotFound,
            "installed: ab_test, blue_green, canary, immediate, rolling",
        ),
        ({**wish(), "strategy": "../x"}, DriverNotFound, "not found"),
        ({**wish(), "options": {"speed": 9}}, ConfigError, "speed: unknown option; allowed: none"),
        ({**wish(), "options": {"deadline_s": -1}}, ConfigError, "deadline_s"),
        ({**wish(), "stratgy": "immediate"}, ConfigError, "stratgy"),
        (wish(env={"HOME_OF": "${env:HOME}"}), ConfigError, "${env:HOME}"),
        (wish(resources={"memory": "900GiB"}), Refused, "1024 MiB in all"),
        (wish(resources={"cpu": 5}), Refused, "5 cores"),
        (wish(instances=3, resources={"memory": "512MiB"}), Refused, "1 of 3 instances"),
        (wish(name="web"), Refused, "belongs to blueprint 'other'"),
        (wish(route={"prefix": "/"}), Refused, "taken by slice 'web'"),
        (wish(instances=0), ConfigError, "instances"),
        (wish(color="red"), ConfigError, "color"),
        ({"blueprint": {}}, ConfigError, "slices"),
        ({"blueprint": "text"}, ConfigError, "blueprint"),
        ({}, ConfigError, "blueprint"),
    ],
    ids=lambda value: None if isinstance(value, dict | type) else value,
)
async def test_what_cannot_run_is_refused(
    api: Api, client: httpx.AsyncClient, path: str, body: Any, kind: type[AetherError], says: str
) -> None:
    await running_web(api)
    before = await api.node.joined_store().list(keys.ROOT)
    response = await client.post(path, json=body)
    error = error_in(response)
    assert type(error) is kind
    assert says in words(error)
    assert response.status_code < 500
    assert (await api.node.joined_store().list(keys.ROOT)).entries == before.entries


async def test_no_more_slices_than_one_transaction_takes(api: Api, client: Any) -> None:
    def sliced(count: int) -> dict[str, Any]:
        document = blueprint()
        one = document["slices"][0]
        document["slices"] = [
            {**one, "name": f"web-{i}", "route": {"prefix": f"/{i}"}} for i in range(count)
        ]
        return {"blueprint": document}

    error = error_in(await client.post("/v1/deployments", json=sliced(MAX_SLICES + 1)))
    assert type(error) is ConfigError
    begun = await client.post("/v1/deployments", json=sliced(MAX_SLICES))
    assert begun.status_code == 200, begun.text


async def test_a_plan_shows_what_deploying_does_and_does_nothing(api: Api, client: Any) -> None:
    before = await api.node.joined_store().revision()
    planned = (await client.post("/v1/plans", json=wish(instances=2))).json()
    assert await api.node.joined_store().revision() == before
    assert planned["strategy"] == "immediate"
    assert [len(nodes) for nodes in planned["plan"]["starts"].values()] == [2]
    begun = (await client.post("/v1/deployments", json=wish(instances=2))).json()
    deployment = api.node.mirror.get(Deployment, keys.deployment(begun["id"]))
    assert deployment is not None
    assert planned["plan"]["changes"] == to_plain(list(deployment.changes))


async def test_a_plan_that_is_out_of_date_is_refused(api: Api, client: Any) -> None:
    planned = (await client.post("/v1/plans", json=wish())).json()["plan"]
    await running_web(api)
    stale = {**wish(), "revision": planned["revision"]}
    error = error_in(await client.post("/v1/deployments", json=stale))
    assert type(error) is Refused
    assert "changed since" in error.message
    assert api.node.mirror.all(Deployment, keys.DEPLOYMENTS) == []


async def test_one_active_deployment_for_each_blueprint(api: Api, client: Any) -> None:
    first = (await client.post("/v1/deployments", json=wish())).json()
    error = error_in(await client.post("/v1/deployments", json=wish(artifact="web:2")))
    assert type(error) is Refused
    assert first["id"] in error.message
    answers = await asyncio.gather(
        *(client.post("/v1/deployments", json={"blueprint": blueprint("two")}) for _ in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    deployments = api.node.mirror.all(Deployment, keys.DEPLOYMENTS)
    assert [d.id for d in deployments] == ["shop-1", "two-1"]


async def test_a_request_sent_twice_is_one_deployment(api: Api, client: Any) -> None:
    headers = {REQUEST_HEADER: "once"}
    answers = await asyncio.gather(
        *(client.post("/v1/deployments", json=wish(), headers=headers) for _ in range(5))
    )
    assert [answer.json() for answer in answers] == [{"id": "shop-1"}] * 5
    assert len(api.node.mirror.all(Deployment, keys.DEPLOYMENTS)) == 1


async def test_blueprints_that_begin_together_all_begin(api: Api, client: Any) -> None:
    wishes = [{"blueprint": blueprint(f"b{i}")} for i in range(4)]
    answers = await asyncio.gather(*(client.post("/v1/deployments", json=one) for one in wishes))
    assert [answer.status_code for answer in answers] == [200] * 4


async def test_a_route_goes_to_the_first_that_begins(api: Api, client: Any) -> None:
    """Its deployment has not routed anything yet; two at once would both have seen it free."""
    same = {"route": {"host": "shop.example", "prefix": "/"}}
    wishes = [{"blueprint": blueprint(name, **same)} for name in ("one", "two", "three")]
    answers = await asyncio.gather(*(client.post("/v1/deployments", json=one) for one in wishes))
    refused = [error_in(answer) for answer in answers if answer.is_error]
    assert [type(error) for error in refused] == [Refused, Refused]
    assert all("route shop.example/ is taken" in error.message for error in refused)


async def test_an_artifact_is_safe_from_the_moment_its_deployment_begins(
    api: Api, client: Any
) -> None:
    assert (await client.post("/v1/deployments", json=wish())).status_code == 200
    error = error_in(await client.delete("/v1/artifacts/web/1"))
    assert type(error) is Refused
    assert "deployment 'shop-1'" in error.message
    assert (await client.delete("/v1/artifacts/web/2")).status_code == 200


@pytest.mark.parametrize("attempt", range(3))
async def test_deploying_and_deleting_at_once_never_both_succeed(
    api: Api, client: Any, attempt: int
) -> None:
    deployed, deleted = await asyncio.gather(
        client.post("/v1/deployments", json=wish()), client.delete("/v1/artifacts/web/1")
    )
    assert sorted([deployed.is_success, deleted.is_success]) != [True, True]
    kept = api.node.mirror.entry(keys.artifact("web", "1")) is not None
    assert kept == (not deleted.is_success)


async def test_undeploying_what_is_not_there(api: Api, client: Any) -> None:
    assert type(error_in(await client.delete("/v1/blueprints/shop"))) is NotFound
    await running_web(api)
    assert (await client.delete("/v1/blueprints/other")).json() == {"id": "other-1"}
    assert type(error_in(await client.delete("/v1/blueprints/other"))) is Refused


async def test_deployments_are_found_by_name_or_because_there_is_only_one(
    api: Api, client: Any
) -> None:
    current = "/v1/deployments/current"
    assert type(error_in(await client.get(current))) is NotFound
    await client.post("/v1/deployments", json=wish())
    for query in ("", "?name=shop", "?name=shop-1"):
        assert (await client.get(current + query)).json()["deployment"]["id"] == "shop-1"
    await client.post("/v1/deployments", json={"blueprint": blueprint("two")})
    error = error_in(await client.get(current))
    assert type(error) is Refused
    assert "shop-1, two-1" in error.message
    assert type(error_in(await client.get(current + "?name=none"))) is NotFound


async def test_scaling_pins_the_number_once(api: Api, client: Any) -> None:
    fleet = await running_web(api)
    headers = {REQUEST_HEADER: "once"}

    async def scale(count: int, **more: Any) -> httpx.Response:
        answer: httpx.Response = await client.post(
            "/v1/slices/web/scale", json={"instances": count}, **more
        )
        return answer

    first = await scale(3, headers=headers)
    assert first.json() == {"slice": "web", "fleet": fleet.id, "before": 1, "now": 3}
    assert (await scale(3, headers=headers)).json() == first.json()
    record = api.node.mirror.get(SliceRecord, keys.slice_record("web"))
    assert record is not None
    assert record.pinned == 3
    outside = error_in(await scale(6))
    assert type(outside) is Refused
    assert "1 to 5" in outside.message
    assert type(error_in(await scale(0))) is ConfigError
    missing = await client.post("/v1/slices/none/scale", json={"instances": 1})
    assert type(error_in(missing)) is NotFound


async def test_scaling_waits_for_a_deployment_to_end(api: Api, client: Any) -> None:
    await running_web(api)
    await client.delete("/v1/blueprints/other")
    error = error_in(await client.post("/v1/slices/web/scale", json={"instances": 2}))
    assert type(error) is Refused
    assert "other-1" in error.message


async def test_somebody_quicker_is_a_conflict(
    api: Api, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale decided on an old look at the slice must not undo a newer one."""
    fleet = await running_web(api)
    key = keys.fleet(fleet.id)
    real = api.node.mirror.modified
    monkeypatch.setattr(api.node.mirror, "modified", lambda k: 1 if k == key else real(k))
    error = error_in(await client.post("/v1/slices/web/scale", json={"instances": 2}))
    assert type(error) is Conflict
