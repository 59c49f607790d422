"""What Envoy is told: shares are whole, the mesh is mTLS, what nobody serves answers 503."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core.envoy import (
    DOWNSTREAM_TLS,
    FLEET_HEADER,
    UPSTREAM_TLS,
    Documents,
    Json,
    World,
    bootstrap,
    eds_file,
    render,
)
from aether_core.model import (
    WHOLE_SHARE_BP,
    Assignment,
    Fleet,
    FleetId,
    HealthCheck,
    InstanceId,
    InstanceSpec,
    InstanceState,
    InstanceStatus,
    NodeId,
    NodeRecord,
    NodeState,
    Ports,
    Route,
    RouteTable,
)
from tests.unit.clocks import START

S = InstanceState
KEY_PEM = "-----BEGIN PRIVATE KEY----- do not show"
V1, V2, API = FleetId("web@1"), FleetId("web@2"), FleetId("api@1")


def fleet(id: FleetId, health: HealthCheck | None = None) -> Fleet:
    name, _, version = id.partition("@")
    spec = InstanceSpec(name, version, f"{name}:{version}", "0", "pyz")
    return Fleet(id, "shop", replace(spec, health=health or HealthCheck()), 1)


def node(number: int) -> NodeRecord:
    ports = Ports(*(1000 * number + offset for offset in range(6)))
    return NodeRecord(
        NodeId(f"n{number}"), f"10.0.0.{number}", ports, True, "m", NodeState.ON_DUTY, START
    )


def seen(name: str, node: str, fleet: FleetId, state: S = S.READY, port: int = 1) -> InstanceStatus:
    return InstanceStatus(InstanceId(name), NodeId(node), fleet, state, START, port=port)


def world(
    *,
    routes: RouteTable | None = None,
    fleets: tuple[Fleet, ...] = (),
    statuses: tuple[InstanceStatus, ...] = (),
    unassigned: tuple[str, ...] = (),
) -> World:
    return World(
        cluster="prod",
        node=NodeId("n1"),
        bind="10.0.0.1",
        live_dir=Path("/live"),
        ca_file=Path("/certs/ca.pem"),
        certificate_pem="CERTIFICATE",
        key_pem=KEY_PEM,
        nodes={record.id: record for record in map(node, (1, 2, 3))},
        routes=routes or RouteTable(),
        fleets=fleets,
        assignments=tuple(
            Assignment(s.id, s.node, s.fleet) for s in statuses if s.id not in unassigned
        ),
        statuses=statuses,
        public_port=80,
        inner_port=7402,
        mesh_port=7401,
    )


def routed(
    shares: dict[str, dict[FleetId, int]], *routes: Route, fleets: tuple[FleetId, ...] = (V1, V2)
) -> Documents:
    table = RouteTable(routes or (Route("*", "/", "web"),), shares)
    return render(world(routes=table, fleets=tuple(map(fleet, fleets))))


def hosts(documents: Documents, which: str) -> dict[str, list[Json]]:
    """Return each virtual host's routes by its domain."""
    (configuration,) = documents.routes[f"rds-{which}.json"]
    return {host["domains"][0]: host["routes"] for host in configuration["virtual_hosts"]}


def shown(route: Json) -> str:
    """Return a route in few words: what it matches, then where it goes."""
    match = route["match"]
    where = match.get("path_separated_prefix", match.get("prefix"))
    unsafe = " unsafe" if "headers" in match else ""
    if "direct_response" in route:
        return f"{where}{unsafe} {route['direct_response']['status']}"
    forward = route["route"]
    if "cluster" in forward:
        return f"{where}{unsafe} {forward['cluster']}"
    clusters = forward["weighted_clusters"]["clusters"]
    return f"{where}{unsafe} " + ",".join(f"{c['name']}={c['weight']}" for c in clusters)


def walk(value: object) -> Iterator[Json]:
    """Yield every object of a document."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


# Routes


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"web": {V1: 10_000}}, ["/ unsafe web@1", "/ web@1", "/ 404"]),
        (
            {"web": {V2: 500, V1: 9_500}},
            ["/ unsafe web@1=9500,web@2=500", "/ web@1=9500,web@2=500", "/ 404"],
        ),
        ({"web": {V1: 10_000, V2: 0}}, ["/ unsafe web@1", "/ web@1", "/ 404"]),
        ({"web": {}}, ["/ 503", "/ 404"]),
        ({}, ["/ 503", "/ 404"]),
        ({"web": {V1: 5_000, FleetId("web@9"): 5_000}}, ["/ 503", "/ 404"]),
        ({"web": {FleetId("web@9"): 10_000}}, ["/ 503", "/ 404"]),
    ],
    ids=["one", "canary", "nothing left", "no shares", "unknown slice", "one gone", "all gone"],
)
def test_shares(shares: dict[str, dict[FleetId, int]], expected: list[str]) -> None:
    assert [shown(r) for r in hosts(routed(shares), "public")["*"]] == expected


def test_shares_that_are_not_whole_are_a_defect() -> None:
    with pytest.raises(AssertionError, match="not whole"):
        routed({"web": {V1: 9_999}})


def test_the_longest_prefix_goes_first_and_any_host_follows_in_every_host() -> None:
    documents = routed(
        {"web": {V1: 10_000}, "api": {API: 10_000}},
        Route("*", "/", "web"),
        Route("shop.example", "/api", "api"),
        Route("*", "/api/v2", "web"),
        Route("shop.example", "/", "api"),
        fleets=(V1, API),
    )
    found = {
        domain: [shown(r) for r in routes if "headers" not in r["match"]]
        for domain, routes in hosts(documents, "public").items()
    }
    assert found == {
        "*": ["/api/v2 web@1", "/ web@1", "/ 404"],
        "shop.example": ["/api api@1", "/ api@1", "/api/v2 web@1", "/ web@1", "/ 404"],
    }


def test_inner_calls_get_the_same_shares() -> None:
    documents = routed({"web": {V1: 9_000, V2: 1_000}, "api": {API: 10_000}}, fleets=(V1, V2, API))
    inner = hosts(documents, "inner")
    assert set(inner) == {"web.aether", "api.aether", "*"}
    assert inner["web.aether"] == hosts(documents, "public")["*"][:2]
    assert [shown(r) for r in inner["*"]] == ["/ 404"]


def test_the_mesh_serves_known_fleets_from_this_node_only() -> None:
    documents = routed({"web": {V1: 10_000}}, fleets=(V1, API))
    routes = hosts(documents, "mesh")["*"]
    by_fleet = {
        r["match"]["headers"][0]["string_match"]["exact"]: r["route"]["cluster"]
        for r in routes[:-1]
    }
    assert by_fleet == {V1: "local/web@1", API: "local/api@1"}
    assert shown(routes[-1]) == "/ 503"
    assert all(r["request_headers_to_remove"] == [FLEET_HEADER] for r in routes[:-1])


def test_nobody_outside_chooses_a_fleet() -> None:
    """Every way to a fleet overwrites the header that says which one it is."""
    documents = routed({"web": {V1: 9_000, V2: 1_000}, "api": {API: 10_000}}, fleets=(V1, V2, API))
    ways = 0
    for which in ("public", "inner"):
        for entry in walk(documents.routes[f"rds-{which}.json"]):
            target = entry.get("route", {}).get("cluster") or ("weight" in entry and entry["name"])
            if target:
                (header,) = entry["request_headers_to_add"]
                assert header["header"] == {"key": FLEET_HEADER, "value": target}
                assert header["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD"
                ways += 1
    assert ways == 10


def test_only_idempotent_requests_are_sent_twice() -> None:
    unsafe, safe = hosts(routed({"web": {V1: 10_000}}), "public")["*"][:2]
    (method,) = unsafe["match"]["headers"]
    assert method["string_match"]["safe_regex"]["regex"] == "POST|PATCH|CONNECT"
    assert "reset" not in unsafe["route"]["retry_policy"]["retry_on"].split(",")
    assert "reset" in safe["route"]["retry_policy"]["retry_on"].split(",")


# Endpoints


def endpoints(documents: Documents, cluster: str) -> list[str]:
    (assignment,) = documents.endpoints[eds_file(cluster)]
    assert assignment["cluster_name"] == cluster
    found = []
    for one in assignment["endpoints"][0]["lb_endpoints"]:
        address = one["endpoint"]["address"]["socket_address"]
        mesh = " mesh" if "metadata" in one else ""
        state = f" {one['health_status']}" if "health_status" in one else ""
        weight = one["load_balancing_weight"]
        found.append(f"{address['address']}:{address['port_value']} x{weight}{mesh}{state}")
    return found


def test_own_instances_one_by_one_and_other_nodes_by_their_mesh() -> None:
    documents = render(
        world(
            fleets=(fleet(V1),),
            statuses=(
                seen("web-1", "n1", V1, port=20_001),
                seen("web-2", "n2", V1),
                seen("web-3", "n2", V1),
                seen("web-4", "n3", V1, S.STARTING),
                seen("web-5", "n3", V1),
                seen("web-6", "n9", V1),  # A node without a record.
                seen("web-7", "n1", V2, port=20_007),
            ),
            unassigned=("web-5",),
        )
    )
    assert endpoints(documents, V1) == ["127.0.0.1:20001 x1", "10.0.0.2:2003 x2 mesh"]
    assert endpoints(documents, f"local/{V1}") == ["127.0.0.1:20001 x1"]


@pytest.mark.parametrize(
    ("state", "is_assigned", "expected"),
    [
        (S.READY, True, "127.0.0.1:5 x1"),
        (S.READY, False, "127.0.0.1:5 x1 DRAINING"),
        (S.UNHEALTHY, True, "127.0.0.1:5 x1 DRAINING"),
        (S.DRAINING, False, "127.0.0.1:5 x1 DRAINING"),
        (S.FETCHING, True, ""),
        (S.PREPARING, True, ""),
        (S.STARTING, True, ""),
        (S.BACKOFF, True, ""),
        (S.STOPPING, False, ""),
    ],
)
def test_which_instances_of_this_node_get_requests(
    state: S, is_assigned: bool, expected: str
) -> None:
    unassigned = () if is_assigned else ("web-1",)
    statuses = (seen("web-1", "n1", V1, state, port=5),)
    made = world(fleets=(fleet(V1),), statuses=statuses, unassigned=unassigned)
    assert endpoints(render(made), V1) == ([expected] if expected else [])


# Security


def test_the_mesh_is_mtls_for_nodes_of_this_cluster_in_both_directions() -> None:
    documents = render(world(fleets=(fleet(V1), fleet(API))))
    contexts = [*walk(documents.listeners), *walk(documents.clusters)]
    contexts = [found for found in contexts if found.get("@type") in (DOWNSTREAM_TLS, UPSTREAM_TLS)]
    assert [c["@type"] for c in contexts] == [DOWNSTREAM_TLS, UPSTREAM_TLS, UPSTREAM_TLS]
    for context in contexts:
        validation = context["common_tls_context"]["validation_context"]
        assert validation["trusted_ca"] == {"filename": "/certs/ca.pem"}
        assert validation["match_typed_subject_alt_names"] == [
            {"san_type": "URI", "matcher": {"prefix": "aether://prod/node/"}}
        ]
        certificates = context["common_tls_context"]["tls_certificate_sds_secret_configs"]
        assert [certificate["name"] for certificate in certificates] == ["node"]
    assert contexts[0]["require_client_certificate"] is True


def test_every_endpoint_of_another_node_is_reached_by_tls() -> None:
    statuses = (seen("web-1", "n1", V1), seen("web-2", "n2", V1))
    documents = render(world(fleets=(fleet(V1),), statuses=statuses))
    for one in walk(documents.endpoints[eds_file(V1)]):
        if "load_balancing_weight" in one:
            address = one["endpoint"]["address"]["socket_address"]["address"]
            is_mesh = one.get("metadata", {}).get("filter_metadata") == {
                "envoy.transport_socket_match": {"mesh": True}
            }
            assert is_mesh is (address != "127.0.0.1")
    (cluster,) = [c for c in documents.clusters if c["name"] == V1]
    first, second = cluster["transport_socket_matches"]
    assert (first["match"], first["transport_socket"]["name"]) == (
        {"mesh": True},
        "envoy.transport_sockets.tls",
    )
    assert (second["match"], second["transport_socket"]["name"]) == ({}, "raw_buffer")


def test_listeners_are_where_they_belong() -> None:
    listeners = {
        listener["name"]: (
            listener["address"]["socket_address"]["address"],
            listener["address"]["socket_address"]["port_value"],
            "transport_socket" in listener["filter_chains"][0],
        )
        for listener in render(world()).listeners
    }
    assert listeners == {
        "public": ("10.0.0.1", 80, False),
        "inner": ("127.0.0.1", 7402, False),
        "mesh": ("10.0.0.1", 7401, True),
    }


def test_the_key_is_in_its_own_document_only() -> None:
    made = world(fleets=(fleet(V1),))
    documents = render(made)
    assert KEY_PEM not in repr(made)
    assert KEY_PEM in json.dumps(documents.secrets)
    others = [documents.endpoints, documents.clusters, documents.routes, documents.listeners]
    assert KEY_PEM not in json.dumps([*others, bootstrap(made, Path("/admin"))])


def test_health_is_checked_as_the_blueprint_says() -> None:
    health = HealthCheck("/up?x", 2.5, 0.5, 2, 4)
    (cluster, _) = render(world(fleets=(fleet(V1, health),))).clusters
    (check,) = cluster["health_checks"]
    assert check["http_health_check"]["path"] == "/up?x"
    assert (check["interval"], check["timeout"], check["no_traffic_interval"]) == (
        "2.5s",
        "0.5s",
        "5s",
    )
    assert (check["healthy_threshold"], check["unhealthy_threshold"]) == (2, 4)


# Any world


ids = st.sampled_from([V1, V2, API, FleetId("gone@1")])


@st.composite
def shares_of(draw: st.DrawFn) -> dict[FleetId, int]:
    """Return shares that sum to the whole, or none."""
    chosen = draw(st.lists(ids, unique=True, max_size=4))
    if not chosen:
        return {}
    cuts = draw(
        st.lists(st.integers(0, WHOLE_SHARE_BP), min_size=len(chosen) - 1, max_size=len(chosen) - 1)
    )
    edges = [0, *sorted(cuts), WHOLE_SHARE_BP]
    parts: list[Any] = [b - a for a, b in pairwise(edges)]
    return dict(zip(chosen, parts, strict=True))


tables = st.builds(
    RouteTable,
    st.lists(
        st.builds(
            Route,
            st.sampled_from(["*", "a.example", "b.example"]),
            st.sampled_from(["/", "/a", "/a/b", "/c"]),
            st.sampled_from(["web", "api", "none"]),
        ),
        max_size=6,
        unique_by=lambda route: (route.host, route.prefix),
    ).map(tuple),
    st.dictionaries(st.sampled_from(["web", "api"]), shares_of(), max_size=2),
)
status_of_any = st.builds(
    seen,
    st.sampled_from([f"web-{n}" for n in range(9)]),
    st.sampled_from(["n1", "n2", "n3", "n9"]),
    ids,
    st.sampled_from(S),
    st.integers(1, 65_535),
)


@given(
    table=tables,
    known=st.lists(ids, unique=True),
    statuses=st.lists(status_of_any, max_size=8, unique_by=lambda status: status.id),
)
def test_whatever_the_store_says_the_documents_agree(
    table: RouteTable, known: list[FleetId], statuses: list[InstanceStatus]
) -> None:
    made = world(routes=table, fleets=tuple(map(fleet, known)), statuses=tuple(statuses))
    documents = render(made)
    assert render(made) == documents
    json.dumps([documents.clusters, documents.routes, documents.endpoints], allow_nan=False)
    clusters = {cluster["name"] for cluster in documents.clusters}
    assert clusters == set(known) | {f"local/{name}" for name in known}
    assert set(documents.endpoints) == {eds_file(name) for name in clusters}
    for entry in walk(list(documents.routes.values())):
        if "weighted_clusters" in entry:
            weights = entry["weighted_clusters"]["clusters"]
            assert sum(part["weight"] for part in weights) == WHOLE_SHARE_BP
            assert {part["name"] for part in weights} <= clusters
        elif "cluster" in entry:
            assert entry["cluster"] in clusters, "a route to a cluster that is not there"
        if "virtual_hosts" in entry:
            domains = [domain for host in entry["virtual_hosts"] for domain in host["domains"]]
            assert len(set(domains)) == len(domains)
            ends = [shown(host["routes"][-1]).split(" ")[0] for host in entry["virtual_hosts"]]
            assert set(ends) == {"/"}, "no request is left without a route"


def test_files_of_two_clusters_never_share_a_name() -> None:
    names = [V1, V2, f"local/{V1}", f"local/{V2}"]
    assert len({eds_file(name) for name in names}) == 4
    assert all("/" not in eds_file(name) for name in names)
