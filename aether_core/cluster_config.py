"""`cluster.toml`: what a cluster is made of."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model, model_validator

from aether_core.blueprint import Name
from aether_core.config import Table, read_toml, resolve, validate, without_default, wrong
from aether_core.errors import ConfigError, PluginError
from aether_core.installed import import_attribute
from aether_core.model import Ports

MAX_QUORUM = 5
# Distance between two nodes' ports where all nodes share one host.
SLOT_PORTS = 10

LAST_PORT = 65_535

Port = Annotated[int, Field(ge=1, le=LAST_PORT)]


class ClusterTable(Table):
    """The cluster itself."""

    name: Name = Field(description="A DNS label; also the name of its context.")
    size: Annotated[int, Field(ge=1, le=1000)] = Field(description="How many nodes.")
    quorum: Annotated[int, Field(ge=1)] = Field(
        0,
        description="How many nodes run an etcd member; odd, at most `size`. Left out: the largest "
        "odd number that is at most `size` and at most five.",
        json_schema_extra=without_default,
    )

    @model_validator(mode="before")
    @classmethod
    def _choose_quorum(cls, values: Any) -> Any:
        if isinstance(values, dict) and "quorum" not in values:
            size = values.get("size")
            if isinstance(size, int) and size >= 1:
                return {**values, "quorum": min(MAX_QUORUM, size - (size + 1) % 2)}
        return values

    @model_validator(mode="after")
    def _quorum_is_odd(self) -> "ClusterTable":
        if self.quorum % 2 == 0 or self.quorum > self.size:
            raise wrong(
                f"quorum {self.quorum} must be odd and at most the size, {self.size}; "
                f"try: quorum = {min(MAX_QUORUM, self.size - (self.size + 1) % 2)}",
                "quorum",
            )
        return self


class CloudTable(Table):
    """Where the machines come from."""

    provider: str = Field(description="The provider driver's name, such as `local`.")
    region: str = Field("", description="Where, in the provider's words; `local` ignores it.")
    instance_type: str = Field(
        "", description="Which machines, in the provider's words; `local` ignores it."
    )


class SecurityTable(Table):
    """What every node's certificate is derived from."""

    cluster_secret: str = Field(
        repr=False,
        description="At least 16 characters; best a reference such as `${secrets:cluster/secret}`.",
    )


class NetworkTable(Table):
    """The ports of a node. Where nodes share one host these are the first node's: each further
    node's ingress is 1 further, its other ports are 10 further."""

    api: Port = Field(7400, description="The node's API, TLS.")
    mesh: Port = Field(7401, description="Requests from other nodes' Envoys, mTLS.")
    inner: Port = Field(7402, description="Requests from this node's slices, loopback only.")
    etcd_client: Port = Field(7403, description="etcd for the nodes, mTLS; on core nodes.")
    etcd_peer: Port = Field(7404, description="etcd's members among themselves, mTLS.")
    ingress: Port = Field(8080, description="Public HTTP.")

    @model_validator(mode="after")
    def _no_port_twice(self) -> "NetworkTable":
        taken: dict[int, str] = {}
        for name, port in self.model_dump().items():
            if port in taken:
                raise wrong(f"port {port} is that of '{taken[port]}' already", name)
            taken[port] = name
        return self


class ClusterConfig(Table):
    """A whole `cluster.toml`, without the tables of plugins."""

    cluster: ClusterTable = Field(description="The cluster itself.")
    cloud: CloudTable = Field(description="Where the machines come from.")
    security: SecurityTable = Field(description="What certificates are derived from.")
    network: NetworkTable = Field(NetworkTable(), description="The ports of a node.")


def read_cluster_config(
    path: Path, extra_tables: Mapping[str, type[BaseModel]] | None = None
) -> ClusterConfig:
    """Read and check a cluster configuration; placeholders stay as they are.

    `extra_tables`: the tables that plugins declared, by name. Errors: ConfigError.
    """
    return validate(read_toml(path), config_model(extra_tables or {}))


def config_model(extra_tables: Mapping[str, type[BaseModel]]) -> type[ClusterConfig]:
    """Return the model of `cluster.toml` with the tables of the installed plugins."""
    if not extra_tables:
        return ClusterConfig
    fields: dict[str, Any] = {name: (model | None, None) for name, model in extra_tables.items()}
    return create_model("ClusterConfig", __base__=ClusterConfig, **fields)


def table_model(path: str) -> type[BaseModel]:
    """Return the model at "module:attribute", a plugin's table. Errors: PluginError."""
    model = import_attribute(path)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PluginError(f"'{path}' is no pydantic model")
    return model


def plugin_tables(config: ClusterConfig) -> dict[str, Any]:
    """Return the tables that are not ours, as plain values: what plugins hear on the nodes."""
    values = config.model_dump(mode="json", exclude_none=True)
    return {name: table for name, table in values.items() if name not in ClusterConfig.model_fields}


async def resolve_config(
    config: ClusterConfig, get_secret: Callable[[str], Awaitable[str]]
) -> ClusterConfig:
    """Return the configuration with every placeholder replaced. Errors: ConfigError."""
    values = await resolve(config.model_dump(exclude_none=True), get_secret, where="cluster.toml")
    return type(config).model_validate(values)


def ports(network: NetworkTable, slot: int, shares_host: bool) -> Ports:
    """Return the ports of the node in `slot` (from 1). Errors: ConfigError: there are no such."""
    far = (slot - 1) * SLOT_PORTS if shares_host else 0
    near = slot - 1 if shares_host else 0
    chosen = {
        name: port + (near if name == "ingress" else far)
        for name, port in network.model_dump().items()
    }
    for name, port in chosen.items():
        if port > LAST_PORT:
            raise ConfigError(
                f"[network] {name} is too high: node {slot} would get port {port}",
                hint=f"the last port is {LAST_PORT}",
            )
    return Ports(**chosen)
