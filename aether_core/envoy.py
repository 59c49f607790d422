"""What Envoy is told, as plain documents: pure functions of what the store says.

A fleet is an Envoy cluster named by the fleet's id. Its READY instances on this node are endpoints
of their own; every other node with READY instances is one endpoint, its mesh listener, weighing as
many as it has. There the header `x-aether-fleet` picks `local/<fleet>`, which has local endpoints
only. Sources: Envoy 1.40 v3 API reference; RFC 9110, 9.2.2 for what is idempotent.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from aether_core.certs import node_uri
from aether_core.envoy_routes import (
    ABSENT_HEADER,
    FLEET_HEADER,
    RETRY_UNSENT,
    TYPE,
    Json,
    answer,
    fleet_header,
    forward,
    slice_routes,
)
from aether_core.evidence import LATENCY_BOUNDS_MS
from aether_core.model import (
    Assignment,
    Fleet,
    FleetId,
    InstanceId,
    InstanceState,
    InstanceStatus,
    NodeId,
    NodeRecord,
    Route,
    RouteTable,
)

INNER_DOMAIN = "aether"  # A slice is http://<slice>.aether to the others.
CONNECT_TIMEOUT_S = 1.0
# Without traffic Envoy would ask once a minute: too long not to know that a node is gone.
NO_TRAFFIC_INTERVAL_S = 5.0
# Long enough for idle WebSockets, short enough to let go of what nobody will use again.
STREAM_IDLE_S = 3600
# A client gets this long to send its request's headers.
HEADERS_TIMEOUT_S = 10
# Envoy has no open last bucket: what takes longer than this would not be counted.
LAST_BOUND_MS = 1e9

HTTP_MANAGER = TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = TYPE + "extensions.filters.http.router.v3.Router"
UPSTREAM_TLS = TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext"
DOWNSTREAM_TLS = TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext"
RAW_BUFFER = TYPE + "extensions.transport_sockets.raw_buffer.v3.RawBuffer"


@dataclass(frozen=True)
class World:
    """All that a node's Envoy depends on."""

    cluster: str
    node: NodeId
    bind: str
    live_dir: Path  # Where Envoy reads the documents.
    ca_file: Path
    certificate_pem: str
    key_pem: str = field(repr=False)
    nodes: Mapping[NodeId, NodeRecord]
    routes: RouteTable
    fleets: tuple[Fleet, ...]
    assignments: tuple[Assignment, ...]
    statuses: tuple[InstanceStatus, ...]
    public_port: int
    inner_port: int
    mesh_port: int


@dataclass(frozen=True)
class Documents:
    """File name to resources. Endpoints are kept apart: they come before what refers to them."""

    endpoints: dict[str, list[Json]]
    clusters: list[Json]
    routes: dict[str, list[Json]]
    listeners: list[Json]
    secrets: list[Json]


def render(world: World) -> Documents:
    """Return every document of this node's Envoy."""
    endpoints: dict[str, list[Json]] = {}
    clusters: list[Json] = []
    statuses = _by_fleet(world.statuses)
    assigned = {assignment.id for assignment in world.assignments}
    for fleet in sorted(world.fleets, key=lambda fleet: fleet.id):
        own = statuses.get(fleet.id, [])
        here, local = _local_endpoints(own, assigned, world), local_name(fleet.id)
        everywhere = [*here, *_remote_endpoints(own, assigned, world)]
        endpoints[eds_file(fleet.id)] = [_assignment(fleet.id, everywhere)]
        clusters.append(_fleet_cluster(fleet, world))
        endpoints[eds_file(local)] = [_assignment(local, here)]
        clusters.append(_cluster(local, world))
    return Documents(
        endpoints=endpoints,
        clusters=clusters,
        routes=render_routes(world),
        listeners=_listeners(world),
        secrets=[_node_secret(world)],
    )


def render_routes(world: World) -> dict[str, list[Json]]:
    """Return only what depends on the routing document, which changes most often."""
    known = {fleet.id for fleet in world.fleets}
    return {
        "rds-public.json": [_public_routes(world.routes, known)],
        "rds-inner.json": [_inner_routes(world.routes, known)],
        "rds-mesh.json": [_mesh_routes(known)],
    }


def bootstrap(world: World, admin_socket: Path) -> Json:
    """Return the file Envoy starts with; everything else it reads from `live_dir`."""
    return {
        "node": {"id": world.node, "cluster": world.cluster},
        "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
        "stats_flush_interval": "1s",  # Histograms are counted up when they are flushed.
        "stats_config": {
            "histogram_bucket_settings": [
                {
                    "match": {"suffix": ".upstream_rq_time"},
                    "buckets": [*LATENCY_BOUNDS_MS, LAST_BOUND_MS],
                }
            ]
        },
        "dynamic_resources": {
            "cds_config": _from_file(world.live_dir / "cds.json"),
            "lds_config": _from_file(world.live_dir / "lds.json"),
        },
    }


def eds_file(cluster: str) -> str:
    """Return the file of a cluster's endpoints."""
    return f"eds-{cluster.replace('/', '~')}.json"


def local_name(fleet: FleetId) -> str:
    """Return the cluster that holds only this node's instances."""
    return f"local/{fleet}"


# Clusters and endpoints


def _fleet_cluster(fleet: Fleet, world: World) -> Json:
    health = fleet.spec.health
    return {
        **_cluster(fleet.id, world),
        "transport_socket_matches": [
            {
                "name": "mesh",
                "match": {"mesh": True},
                "transport_socket": _tls(UPSTREAM_TLS, world),
            },
            {
                "name": "loopback",
                "match": {},
                "transport_socket": {"name": "raw_buffer", "typed_config": {"@type": RAW_BUFFER}},
            },
        ],
        "health_checks": [
            {
                "timeout": _seconds(health.timeout_s),
                "interval": _seconds(health.interval_s),
                "no_traffic_interval": _seconds(max(health.interval_s, NO_TRAFFIC_INTERVAL_S)),
                "unhealthy_threshold": health.unhealthy_after,
                "healthy_threshold": health.healthy_after,
                "http_health_check": {
                    "path": health.path,
                    "request_headers_to_add": [fleet_header(fleet.id)],
                    "expected_statuses": [{"start": 200, "end": 400}],
                },
            }
        ],
        # Takes out who fails to answer, not who answers badly: that is for the judge. Half at
        # most, so that a fleet of one or two is never taken out whole.
        "outlier_detection": {
            "consecutive_local_origin_failure": 3,
            "split_external_local_origin_errors": True,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_percent": 50,
        },
    }


def _cluster(name: str, world: World) -> Json:
    return {
        "@type": TYPE + "config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": _seconds(CONNECT_TIMEOUT_S),
        # Otherwise an endpoint that is taken out stays, connected, for as long as it is healthy.
        "ignore_health_on_host_removal": True,
        "eds_cluster_config": {"eds_config": _from_file(world.live_dir / eds_file(name))},
        # Envoy's own limits (1024 of each) would refuse what a busy instance could still take.
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 65_536,
                    "max_pending_requests": 65_536,
                    "max_requests": 65_536,
                    "max_retries": 1_024,
                }
            ]
        },
    }


def _by_fleet(statuses: Iterable[InstanceStatus]) -> dict[FleetId, list[InstanceStatus]]:
    grouped: dict[FleetId, list[InstanceStatus]] = {}
    for status in statuses:
        grouped.setdefault(status.fleet, []).append(status)
    return grouped


def _remote_endpoints(
    statuses: Iterable[InstanceStatus], assigned: Set[InstanceId], world: World
) -> list[Json]:
    """Return the other nodes with READY instances, each weighing as many as it has."""
    remote = Counter(
        status.node
        for status in statuses
        if status.node != world.node
        and status.state == InstanceState.READY
        and status.id in assigned
    )
    found = []
    for node, count in sorted(remote.items()):
        record = world.nodes.get(node)
        if record is not None:
            found.append(_endpoint(record.address, record.ports.mesh, weight=count, mesh=True))
    return found


def _local_endpoints(
    statuses: Iterable[InstanceStatus], assigned: Set[InstanceId], world: World
) -> list[Json]:
    """Return this node's instances: READY ones serve, those on their way out only finish."""
    found = []
    for status in statuses:
        if status.node == world.node and status.port:
            serves = status.state == InstanceState.READY and status.id in assigned
            ends = status.state in (
                InstanceState.READY,
                InstanceState.UNHEALTHY,
                InstanceState.DRAINING,
            )
            if serves or ends:
                found.append(_endpoint("127.0.0.1", status.port, weight=1, draining=not serves))
    return found


def _endpoint(
    address: str, port: int, *, weight: int, mesh: bool = False, draining: bool = False
) -> Json:
    endpoint: Json = {
        "endpoint": {"address": _address(address, port)},
        "load_balancing_weight": weight,
    }
    if mesh:
        endpoint["metadata"] = {"filter_metadata": {"envoy.transport_socket_match": {"mesh": True}}}
    if draining:
        endpoint["health_status"] = "DRAINING"
    return endpoint


def _assignment(cluster: str, endpoints: list[Json]) -> Json:
    return {
        "@type": TYPE + "config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": endpoints}],
    }


# Routes


def _public_routes(table: RouteTable, known: set[FleetId]) -> Json:
    """Hosts to prefixes, the longest first; what is for any host follows in every host."""
    hosts = sorted({route.host for route in table.routes} | {"*"})
    virtual_hosts = []
    for host in hosts:
        own = _by_prefix(r for r in table.routes if r.host == host)
        anywhere = _by_prefix(r for r in table.routes if r.host == "*") if host != "*" else []
        routes = [
            entry
            for route in [*own, *anywhere]
            for entry in slice_routes(route.slice, route.prefix, table, known)
        ]
        routes.append(answer(404, "no slice is routed here\n"))
        virtual_hosts.append({"name": host, "domains": [host], "routes": routes})
    return _route_configuration("public", virtual_hosts)


def _inner_routes(table: RouteTable, known: set[FleetId]) -> Json:
    virtual_hosts: list[Json] = [
        {
            "name": name,
            "domains": [f"{name}.{INNER_DOMAIN}"],
            "routes": slice_routes(name, "/", table, known),
        }
        for name in sorted(table.shares)
    ]
    nobody = [answer(404, "no slice of that name: use http://<slice>.aether\n")]
    virtual_hosts.append({"name": "*", "domains": ["*"], "routes": nobody})
    return _route_configuration("inner", virtual_hosts)


def _mesh_routes(known: set[FleetId]) -> Json:
    routes: list[Json] = [
        {
            "match": {
                "prefix": "/",
                "headers": [{"name": FLEET_HEADER, "string_match": {"exact": fleet}}],
            },
            "route": {**forward(RETRY_UNSENT), "cluster": local_name(fleet)},
            "request_headers_to_remove": [FLEET_HEADER],
        }
        for fleet in sorted(known)
    ]
    absent = answer(503, "this node has no instance of that fleet\n")
    routes.append(absent | {"response_headers_to_add": [_absent_header()]})
    return _route_configuration("mesh", [{"name": "mesh", "domains": ["*"], "routes": routes}])


def _by_prefix(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: (-len(route.prefix), route.prefix))


def _route_configuration(name: str, virtual_hosts: list[Json]) -> Json:
    return {
        "@type": TYPE + "config.route.v3.RouteConfiguration",
        "name": name,
        "virtual_hosts": virtual_hosts,
    }


# Listeners and secrets


def _listeners(world: World) -> list[Json]:
    public = _manager("public", world) | {"use_remote_address": True}
    inner = _manager("inner", world)
    # A slice may use the listener as its HTTP proxy and then write http://<slice>.aether.
    inner["http_protocol_options"] = {"allow_absolute_url": True}
    mesh = _manager("mesh", world)
    nobody = {"response_flag_filter": {"flags": ["UH", "NC"]}}  # No endpoint, or no such cluster.
    mapper = {"filter": nobody, "headers_to_add": [_absent_header()]}
    mesh["local_reply_config"] = {"mappers": [mapper]}
    return [
        _listener("public", world.bind, world.public_port, public),
        _listener("inner", "127.0.0.1", world.inner_port, inner),
        _listener("mesh", world.bind, world.mesh_port, mesh, tls=_tls(DOWNSTREAM_TLS, world)),
    ]


def _listener(
    name: str, address: str, port: int, manager: Json, *, tls: Json | None = None
) -> Json:
    chain: Json = {
        "filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        ]
    }
    if tls:
        chain["transport_socket"] = tls
    return {
        "@type": TYPE + "config.listener.v3.Listener",
        "name": name,
        "address": _address(address, port),
        "filter_chains": [chain],
    }


def _manager(name: str, world: World) -> Json:
    return {
        "@type": HTTP_MANAGER,
        "stat_prefix": name,
        "rds": {
            "route_config_name": name,
            "config_source": _from_file(world.live_dir / f"rds-{name}.json"),
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": ROUTER, "suppress_envoy_headers": True},
            }
        ],
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "generate_request_id": False,
        "normalize_path": True,
        "strip_any_host_port": True,
        "stream_idle_timeout": f"{STREAM_IDLE_S}s",
        "request_headers_timeout": f"{HEADERS_TIMEOUT_S}s",
        "server_header_transformation": "PASS_THROUGH",
    }


def _tls(kind: str, world: World) -> Json:
    """Return mTLS with this node's certificate, for nodes of this cluster only."""
    context: Json = {
        "@type": kind,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [
                {"name": "node", "sds_config": _from_file(world.live_dir / "sds.json")}
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(world.ca_file)},
                "match_typed_subject_alt_names": [
                    {
                        "san_type": "URI",
                        "matcher": {"prefix": node_uri(world.cluster, NodeId(""))},
                    }
                ],
            },
        },
    }
    if kind == DOWNSTREAM_TLS:
        context["require_client_certificate"] = True
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _node_secret(world: World) -> Json:
    return {
        "@type": TYPE + "extensions.transport_sockets.tls.v3.Secret",
        "name": "node",
        "tls_certificate": {
            # Inline, so that a renewed certificate is a new document, which Envoy then reads.
            "certificate_chain": {"inline_string": world.certificate_pem},
            "private_key": {"inline_string": world.key_pem},
        },
    }


# Small pieces


def _from_file(path: Path) -> Json:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


def _address(address: str, port: int) -> Json:
    return {"socket_address": {"address": address, "port_value": port}}


def _absent_header() -> Json:
    return {"header": {"key": ABSENT_HEADER, "value": "1"}}


def _seconds(value_s: float) -> str:
    return f"{value_s:g}s"
