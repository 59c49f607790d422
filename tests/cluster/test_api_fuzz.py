"""Whatever is sent: an answer that says what is wrong, never an internal error."""

import copy
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aether_core.model import Role
from tests.cluster.conftest import Member, empty_store
from tests.cluster.nodes import Api, running_api

#: Bodies that are right, to be spoiled in one place.
RIGHT: dict[str, Any] = {
    "/v1/plans": {
        "blueprint": {
            "blueprint": {"name": "shop", "version": "1"},
            "slices": [
                {
                    "name": "web",
                    "artifact": "web:1",
                    "instances": 2,
                    "entry": "web:app",
                    "route": {"host": "shop.example", "prefix": "/"},
                    "health": {"path": "/health", "interval_s": 1.0},
                    "env": {"KEY": "value"},
                    "resources": {"cpu": 0.5, "memory": "64MiB"},
                    "scale": {"min": 1, "max": 3},
                }
            ],
            "strategy": {"kind": "immediate"},
        },
        "strategy": "immediate",
        "options": {},
        "revision": 1,
    },
    "/v1/tokens": {"name": "x", "role": "viewer", "expires_in_s": 60},
    "/v1/slices/web/scale": {"instances": 2},
    "/v1/bootstrap/join": {
        "peers": [
            {
                "node": "node-1",
                "address": "127.0.0.1",
                "is_core": True,
                "machine": "m",
                "ports": {
                    "api": 1,
                    "ingress": 2,
                    "inner": 3,
                    "mesh": 4,
                    "etcd_client": 5,
                    "etcd_peer": 6,
                },
            }
        ]
    },
}
RIGHT["/v1/deployments"] = RIGHT["/v1/plans"]

texts = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["\ud800", "\0", "9" * 400 + "TiB", "-1MiB", "${env:HOME}", "${secrets:a}", "../..", "\r\nX: y"]
)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 2**63, 1e308])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


@pytest.fixture
async def api(lone_member: Member, tmp_path: Path) -> AsyncIterator[Api]:
    await empty_store(lone_member)
    directory = tmp_path / "node-1"
    async with running_api(directory, lone_member.endpoint, is_replicating=False) as running:
        yield running


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a tree."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a route, and a body that is right but for one value or one more key."""
    path = draw(st.sampled_from(sorted(RIGHT)))
    body = copy.deepcopy(RIGHT[path])
    where = draw(st.sampled_from(places(body)))
    if not where:
        return path, json.dumps(draw(values)).encode()
    holder = body
    for key in where[:-1]:
        holder = holder[key]
    if isinstance(holder, dict) and draw(st.booleans()):
        holder[draw(texts)] = draw(values)
    else:
        holder[where[-1]] = draw(values)
    return path, json.dumps(body).encode()


FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(sent=spoiled())
async def test_no_body_is_an_internal_error(api: Api, sent: tuple[str, bytes]) -> None:
    path, body = sent
    headers = {"Content-Type": "application/json"}
    is_for_nodes = "bootstrap" in path
    async with api.asks(None if is_for_nodes else Role.ADMIN, peer="x" * is_for_nodes) as client:
        response = await client.post(path, content=body, headers=headers)
    assert response.status_code < 500, response.text
    assert json.loads(response.text)


@FUZZ
@given(name=st.text(st.characters(codec="utf-8"), max_size=20), number=scalars)
async def test_no_query_is_an_internal_error(api: Api, name: str, number: Any) -> None:
    query = {"name": name, "lines": str(number).encode(errors="replace"), "follow": name}
    async with api.asks(Role.ADMIN) as client:
        for path in ("/v1/logs", "/v1/instances", "/v1/deployments/current"):
            response = await client.get(path, params=query)
            assert response.status_code < 500, response.text
