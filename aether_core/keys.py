"""Where each document lives in the store. Written here only, so that no two modules disagree."""

from functools import lru_cache

from aether_core.model import FleetId, InstanceId, NodeId

ROOT = "/aether/"  # Every process mirrors what is below.
DESIRED = ROOT + "desired/"
OBSERVED = ROOT + "observed/"

# Outside the root, so that no process mirrors them.
REQUESTS = "/aether-requests/"  # <request id>: written with the change it asked for.
AUDIT = "/aether-audit/"

LEADER = ROOT + "leader"
CLUSTER = DESIRED + "cluster"
ROUTES = DESIRED + "routes"

NODES = DESIRED + "nodes/"
BLUEPRINTS = DESIRED + "blueprints/"
DEPLOYMENTS = DESIRED + "deployments/"
TRIALS = DESIRED + "trials/"  # <deployment>: what its versions' requests showed so far.
ACTIVE = DESIRED + "active/"  # <blueprint>: the id of its one active deployment.
BEGUN = DESIRED + "begun"  # The deployment that began last: whoever begins one compares it.
SLICES = DESIRED + "slices/"
FLEETS = DESIRED + "fleets/"
INSTANCES = DESIRED + "instances/"
ARTIFACTS = DESIRED + "artifacts/"
TOKENS = DESIRED + "tokens/"

NODE_STATUSES = OBSERVED + "nodes/"
INSTANCE_STATUSES = OBSERVED + "instances/"
INGRESS_STATUSES = OBSERVED + "ingress/"
TRAFFIC = OBSERVED + "traffic/"  # <node>: what its Envoy counted, while a deployment goes on.
COPIES = OBSERVED + "copies/"  # <node>/<sha256>: the node holds these bytes, fsynced.


@lru_cache(maxsize=10_000)
def family(key: str) -> str:
    """Return the key's first three parts: what one kind of document shares, such as its index."""
    return "/".join(key.split("/", 4)[:4])


def node(id: NodeId) -> str:
    return NODES + id


def node_status(id: NodeId) -> str:
    return NODE_STATUSES + id


def blueprint(name: str) -> str:
    return BLUEPRINTS + name


def deployment(id: str) -> str:
    return DEPLOYMENTS + id


def trial(deployment_id: str) -> str:
    return TRIALS + deployment_id


def active(blueprint_name: str) -> str:
    return ACTIVE + blueprint_name


def slice_record(name: str) -> str:
    return SLICES + name


def fleet(id: FleetId) -> str:
    return FLEETS + id


def assignments(node_id: NodeId) -> str:
    return f"{INSTANCES}{node_id}/"


def assignment(node_id: NodeId, id: InstanceId) -> str:
    return assignments(node_id) + id


def instance_statuses(node_id: NodeId) -> str:
    return f"{INSTANCE_STATUSES}{node_id}/"


def instance_status(node_id: NodeId, id: InstanceId) -> str:
    return instance_statuses(node_id) + id


def ingress_status(node_id: NodeId) -> str:
    return INGRESS_STATUSES + node_id


def traffic(node_id: NodeId) -> str:
    return TRAFFIC + node_id


def artifact(name: str, version: str) -> str:
    return f"{ARTIFACTS}{name}/{version}"


def copies(node_id: NodeId) -> str:
    return f"{COPIES}{node_id}/"


def copy(node_id: NodeId, sha256: str) -> str:
    return copies(node_id) + sha256


def token(id: str) -> str:
    return TOKENS + id


def request(id: str) -> str:
    return REQUESTS + id
