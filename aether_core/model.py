"""The words: every value that Aether stores, decides on or sends. Frozen; changed by `replace`.

Records under `desired/` say what should be, statuses under `observed/` what a node saw.
"""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType, TypeVar

from pydantic import TypeAdapter, ValidationError

from aether_core.errors import IntegrityError

NodeId = NewType("NodeId", str)
InstanceId = NewType("InstanceId", str)
#: "my-service@1.0.0-3fa9c1": slice, artifact version, digest of everything else that runs.
FleetId = NewType("FleetId", str)

#: Shares are whole basis points: a route's shares sum to exactly this.
WHOLE_SHARE_BP = 10_000


class NodeState(StrEnum):
    """Where a node is in its life; `lifecycle.py` has the legal moves."""

    JOINING = "JOINING"
    ON_DUTY = "ON_DUTY"
    DRAINING = "DRAINING"
    DECOMMISSIONED = "DECOMMISSIONED"
    SHUTTING_DOWN = "SHUTTING_DOWN"


class InstanceState(StrEnum):
    """What its node says of an instance."""

    FETCHING = "FETCHING"  # The artifact is on its way to the node.
    PREPARING = "PREPARING"  # The runtime unpacks it.
    STARTING = "STARTING"  # The process runs, its health check has not passed yet.
    READY = "READY"
    UNHEALTHY = "UNHEALTHY"  # The process runs, its health check fails.
    BACKOFF = "BACKOFF"  # It ended or could not start; the next try waits.
    DRAINING = "DRAINING"  # Out of routing; requests in flight finish.
    STOPPING = "STOPPING"  # Asked to end, not gone yet.


class DeploymentState(StrEnum):
    """How far a deployment is; `deployment.py` has the legal moves."""

    PENDING = "PENDING"
    DEPLOYING = "DEPLOYING"
    DEPLOYED = "DEPLOYED"
    ROUTING = "ROUTING"
    PROMOTING = "PROMOTING"
    DRAINING = "DRAINING"
    COMPLETED = "COMPLETED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    FAILED = "FAILED"


class Role(StrEnum):
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@dataclass(frozen=True)
class Ports:
    """The TCP ports of one node. All but `ingress` and `inner` speak mTLS or TLS."""

    api: int
    ingress: int  # Public HTTP.
    inner: int  # Loopback HTTP: one slice calls another.
    mesh: int  # mTLS between nodes' proxies.
    etcd_client: int
    etcd_peer: int


@dataclass(frozen=True)
class Resources:
    """`cpu` in cores, `memory_bytes` in bytes; 0 means nothing reserved."""

    cpu: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True)
class NodeRecord:
    """desired/nodes/<node>: a machine of the cluster."""

    id: NodeId
    address: str
    ports: Ports
    is_core: bool  # Runs an etcd member.
    machine: str  # The provider's id of the machine.
    state: NodeState
    since: datetime
    why: str = ""


@dataclass(frozen=True)
class NodeStatus:
    """observed/nodes/<node>: leased, so it is gone when the node is."""

    id: NodeId
    capacity: Resources
    agent_pid: int
    agent_version: str
    started_at: datetime


@dataclass(frozen=True)
class HealthCheck:
    """An HTTP GET that answers 2xx or 3xx when the instance can take requests."""

    path: str = "/"
    interval_s: float = 1.0
    timeout_s: float = 1.0
    healthy_after: int = 1  # Passes in a row.
    unhealthy_after: int = 3  # Failures in a row.
    start_s: float = 30.0  # An instance that is not READY by then has failed to start.


@dataclass(frozen=True)
class InstanceSpec:
    """All that a node needs to run one instance; equal for all instances of a fleet."""

    slice: str
    version: str
    artifact: str  # name:version
    sha256: str
    kind: str  # Name of the runtime driver: jar, whl, pyz, tar_gz.
    entry: str = ""  # whl: "module:app" or a console script; tar_gz: the command line.
    env: dict[str, str] = field(default_factory=dict)  # May hold ${secrets:...} references.
    resources: Resources = Resources()
    health: HealthCheck = HealthCheck()
    drain_s: float = 30.0  # Longest wait for requests in flight.
    grace_s: float = 10.0  # From SIGTERM to SIGKILL.


@dataclass(frozen=True)
class Fleet:
    """desired/fleets/<fleet>: the instances of one version of a slice, and how many."""

    id: FleetId
    blueprint: str
    spec: InstanceSpec
    instances: int
    min_available: int = 0


@dataclass(frozen=True)
class SliceRecord:
    """desired/slices/<slice>: what outlives the slice's versions."""

    name: str
    blueprint: str
    next_ordinal: int = 1  # Its next instance is "<slice>-<next_ordinal>".
    pinned: int | None = None  # Set by `aether scale`: goes before the blueprint's count.


@dataclass(frozen=True)
class Assignment:
    """desired/instances/<node>/<instance>: this node runs it; deleted means drain and stop."""

    id: InstanceId
    node: NodeId
    fleet: FleetId


@dataclass(frozen=True)
class InstanceStatus:
    """observed/instances/<node>/<instance>: what the node saw last."""

    id: InstanceId
    node: NodeId
    fleet: FleetId
    state: InstanceState
    since: datetime
    port: int = 0
    pid: int = 0
    restarts: int = 0
    why: str = ""
    log_tail: tuple[str, ...] = ()  # The last lines, when it ended or could not start.


@dataclass(frozen=True)
class Route:
    """Requests for `host` ("*" is any) whose path starts with `prefix` go to `slice`."""

    host: str
    prefix: str
    slice: str


@dataclass(frozen=True)
class Variants:
    """How the requests of a slice are told apart in an A/B test; see `drivers.Split`.

    `names`: what each fleet is called; `first`: whose buckets come first, so that whoever has it
    keeps it when its share grows. `test`: the test's id, part of the cookie's value, so that the
    cookies of an earlier test mean nothing.
    """

    test: str
    by: str
    name: str
    force_header: str
    first: FleetId
    names: dict[FleetId, str]


@dataclass(frozen=True)
class RouteTable:
    """desired/routes: the one routing document.

    Shares are basis points, per slice summing to 10,000. A slice without shares is known but has
    nothing to serve it yet: its route answers 503.
    """

    routes: tuple[Route, ...] = ()
    shares: dict[str, dict[FleetId, int]] = field(default_factory=dict)
    variants: dict[str, Variants] = field(default_factory=dict)


@dataclass(frozen=True)
class IngressStatus:
    """observed/ingress/<node>: its Envoy answers with all stored up to `revision`."""

    node: NodeId
    revision: int
    error: str = ""


class ArtifactState(StrEnum):
    STAGED = "STAGED"  # Being replicated; not acknowledged.
    STORED = "STORED"


@dataclass(frozen=True)
class ArtifactRecord:
    """desired/artifacts/<name>/<version>: immutable but for `state` and `holders`."""

    name: str
    version: str
    kind: str
    size_bytes: int
    sha256: str
    state: ArtifactState
    holders: tuple[NodeId, ...]  # The nodes that should keep a copy.
    created_at: datetime
    by: str


@dataclass(frozen=True)
class TokenRecord:
    """desired/tokens/<id>: a bearer token, of which only the hash is kept."""

    id: str
    name: str
    role: Role
    sha256: str
    created_at: datetime
    expires_at: datetime | None = None


T = TypeVar("T")


_adapters: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def encode(value: object) -> bytes:
    """Return `value`, one of this module's dataclasses, as JSON with sorted keys."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":")).encode()


def to_plain(value: object) -> Any:
    """Return `value` as JSON-ready dicts, lists, strings and numbers."""
    return _adapter(type(value)).dump_python(value, mode="json")


def decode(kind: type[T], data: bytes) -> T:
    """Return the `kind` that `encode` wrote. Errors: IntegrityError for anything else."""
    try:
        value: T = _adapter(kind).validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"stored {kind.__name__} is not readable: {error}") from error
    return value


def fleet_id(spec: InstanceSpec) -> FleetId:
    """Name the fleet of `spec`: the same spec gives the same fleet, any change another."""
    digest = hashlib.sha256(encode(spec)).hexdigest()[:6]
    return FleetId(f"{spec.slice}@{spec.version}-{digest}")


def slice_of(fleet: FleetId) -> str:
    """Return the slice that `fleet` is of."""
    return fleet.partition("@")[0]
