"""`blueprint.toml`: which slices of which artifacts run, and how."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from aether_core.config import Document, Table, read_toml, validate, without_default, wrong
from aether_core.errors import ConfigError
from aether_core.model import ArtifactRecord, HealthCheck, InstanceSpec, Resources, Route

SIZE_UNITS = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", value):
        raise ValueError("must be a DNS label: a to z, 0 to 9 and '-', at most 63 characters")
    return value


def _artifact_reference(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*:[A-Za-z0-9][A-Za-z0-9._+-]*", value):
        raise ValueError('must be "name:version"')
    return value


def _path(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or "#" in value:
        raise ValueError('must be a path that begins with "/", in visible ASCII characters')
    return value


def _prefix(value: str) -> str:
    if "?" in value:
        raise ValueError("must be a path without a query")
    return _path(value).rstrip("/") or "/"


def _host(value: str) -> str:
    if value != "*" and not re.fullmatch(r"[A-Za-z0-9.-]+", value):
        raise ValueError('must be a host name without port, or "*" for any')
    return value.lower()


def _entry(value: str) -> str:
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"must be a command line: {str(error).lower()}") from None
    if not words:
        raise ValueError("must say what to start")
    return value


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("must be a variable's name: letters, digits and '_'")
    if name == "PORT" or name.startswith("AETHER_"):
        raise ValueError("is set by Aether itself")
    return name


def _variable_value(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold the character NUL, which no environment can")
    return value


def _size(value: Any) -> Any:
    """Turn "256MiB" into bytes."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(KiB|MiB|GiB|TiB)", str(value))
    if match is None:
        raise ValueError('must be a number with KiB, MiB, GiB or TiB, such as "256MiB"')
    return int(float(match[1]) * SIZE_UNITS[match[2]])


def _as_written(schema: dict[str, Any]) -> None:
    """Describe a size to editors as the text that a user writes."""
    without_default(schema)
    schema["type"] = "string"


Name = Annotated[str, AfterValidator(_name)]
Bytes = Annotated[int, BeforeValidator(_size), Field(json_schema_extra=_as_written)]
Variable = Annotated[str, AfterValidator(_variable)]
VariableValue = Annotated[str, AfterValidator(_variable_value)]
Seconds = Annotated[float, Field(gt=0, le=86_400, strict=False)]


class RouteTable(Table):
    """Where requests for the slice come in."""

    host: Annotated[str, AfterValidator(_host)] = Field(
        "*", description="The request's host, without port; `*` is any."
    )
    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        "/", description="What the path starts with, whole segments only; the longest one wins."
    )


class HealthTable(Table):
    """An HTTP GET that answers 2xx or 3xx when an instance can take requests."""

    path: Annotated[str, AfterValidator(_path)] = Field("/", description="What is asked for.")
    interval_s: Seconds = Field(1.0, description="Seconds from one question to the next.")
    timeout_s: Seconds = Field(1.0, description="No answer within so many seconds is a failure.")
    healthy_after: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="Passes in a row that make an instance ready."
    )
    unhealthy_after: Annotated[int, Field(ge=1, le=100)] = Field(
        3, description="Failures in a row that take it out of routing."
    )
    start_s: Seconds = Field(
        30.0, description="Not healthy within so many seconds, it is stopped and started again."
    )


class ResourcesTable(Table):
    """What each instance reserves on its node."""

    cpu: Annotated[float, Field(ge=0, le=10_000, strict=False)] = Field(
        0.0, description="Cores; 0 reserves nothing."
    )
    memory: Bytes = Field(
        0,
        description="A number with KiB, MiB, GiB or TiB, such as `256MiB`. Left out: nothing is "
        "reserved. The process may write to twice as much.",
    )


class ScaleTable(Table):
    """The bounds of the slice's number of instances, which nobody may leave."""

    min: Annotated[int, Field(ge=1)] = Field(1, description="Never fewer instances.")
    max: Annotated[int, Field(ge=1)] = Field(10_000, description="Never more instances.")


class SliceTable(Table):
    """One slice."""

    name: Name = Field(
        description="A DNS label, unique in the cluster; other slices call it `http://<name>.aether`."
    )
    artifact: Annotated[str, AfterValidator(_artifact_reference)] = Field(
        description="What it runs, as `name:version`."
    )
    instances: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1, description="How many copies run; a number set by `aether scale` goes before this one."
    )
    min_available: Annotated[int, Field(ge=0)] = Field(
        0,
        description="How many stay available; a rollout that would leave fewer is refused.",
    )
    entry: Annotated[str, AfterValidator(_entry)] = Field(
        "",
        description="What to start. A wheel: `module:app` (ASGI) or a console script. A tarball: "
        "the command line. Others need none.",
    )
    route: RouteTable | None = Field(
        None, description="Where requests come in; without it only other slices reach it."
    )
    health: HealthTable = Field(HealthTable(), description="When an instance can take requests.")
    env: dict[Variable, VariableValue] = Field(
        {},
        repr=False,
        description="Its environment. `${secrets:path}` is looked up by the node, `${env:NAME}` "
        "where `aether deploy` runs.",
    )
    scale: ScaleTable = Field(ScaleTable(), description="The bounds of its number of instances.")
    resources: ResourcesTable = Field(
        ResourcesTable(),
        description="What each instance reserves on its node.",
        json_schema_extra=without_default,
    )
    drain_s: Annotated[float, Field(ge=0, le=86_400, strict=False)] = Field(
        30.0, description="Longest wait for requests in flight before an instance is stopped."
    )
    grace_s: Annotated[float, Field(ge=0, le=86_400, strict=False)] = Field(
        10.0, description="Seconds from SIGTERM to SIGKILL."
    )

    @model_validator(mode="after")
    def _bounds_agree(self) -> "SliceTable":
        if self.min_available > self.instances:
            raise wrong(
                f"{self.min_available} is more than instances, {self.instances}", "min_available"
            )
        if not self.scale.min <= self.instances <= self.scale.max:
            bounds = f"{self.scale.min} to {self.scale.max}"
            raise wrong(f"{self.instances} is outside scale, {bounds}", "instances")
        return self


class HeadTable(Table):
    """What the blueprint is called."""

    name: Name = Field(description="A DNS label; the cluster has one blueprint of each name.")
    version: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        description="Any text that tells people which one it is."
    )


class StrategyTable(Table, extra="allow"):
    """How it is rolled out; all other keys are the strategy's own and checked by it."""

    kind: str = Field("immediate", description="The strategy's name; `--strategy` goes before it.")
    deadline_s: Seconds = Field(
        300.0,
        description="Longest wait, at each stage, for instances to become healthy and for Envoys "
        "to confirm; then the deployment goes back.",
    )

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _not_empty(slices: tuple[SliceTable, ...]) -> tuple[SliceTable, ...]:
    # Not `min_length`: it also counts the slices that are there but not valid as missing.
    if not slices:
        raise ValueError("must be one slice at least")
    return slices


class Blueprint(Table):
    """A whole `blueprint.toml`."""

    blueprint: HeadTable = Field(description="What the blueprint is called.")
    slices: Annotated[tuple[SliceTable, ...], Field(strict=False), AfterValidator(_not_empty)] = (
        Field(description="The slices, at least one.")
    )
    strategy: StrategyTable = Field(StrategyTable(), description="How it is rolled out.")

    @model_validator(mode="after")
    def _nothing_twice(self) -> "Blueprint":
        names: set[str] = set()
        taken: dict[tuple[str, str], str] = {}
        for number, piece in enumerate(self.slices):
            if piece.name in names:
                raise wrong(f"slice '{piece.name}' is there already", "slices", number, "name")
            names.add(piece.name)
            if piece.route is not None:
                where = (piece.route.host, piece.route.prefix)
                if where in taken:
                    reason = f"slice '{taken[where]}' has the route {''.join(where)} already"
                    raise wrong(reason, "slices", number, "route")
                taken[where] = piece.name
        return self

    @property
    def name(self) -> str:
        return self.blueprint.name

    def routes(self) -> tuple[Route, ...]:
        """Return the routes of all slices that have one."""
        return tuple(
            Route(piece.route.host, piece.route.prefix, piece.name)
            for piece in self.slices
            if piece.route is not None
        )


def read_blueprint(path: Path) -> Blueprint:
    """Read and check a blueprint. Errors: ConfigError with every problem."""
    return validate(read_toml(path), Blueprint)


def parse_blueprint(document: dict[str, Any]) -> Blueprint:
    """Check a blueprint that came as JSON. Errors: ConfigError."""
    return validate(Document("blueprint", document, {}), Blueprint)


def instance_spec(piece: SliceTable, artifact: ArtifactRecord) -> InstanceSpec:
    """Return what a node needs to run one instance of the slice."""
    if artifact.kind == "tar_gz" and not piece.entry:
        raise ConfigError(
            f"slice '{piece.name}' has no entry: a .tar.gz needs the command to start",
            hint='entry = "bin/server --port $PORT"',
        )
    if artifact.kind == "whl" and not piece.entry:
        raise ConfigError(
            f"slice '{piece.name}' has no entry: a .whl needs what to start",
            hint='entry = "module:app" for ASGI, or the name of a console script',
        )
    return InstanceSpec(
        slice=piece.name,
        version=artifact.version,
        artifact=piece.artifact,
        sha256=artifact.sha256,
        kind=artifact.kind,
        entry=piece.entry,
        env=dict(sorted(piece.env.items())),
        resources=Resources(piece.resources.cpu, piece.resources.memory),
        health=HealthCheck(**piece.health.model_dump()),
        drain_s=piece.drain_s,
        grace_s=piece.grace_s,
    )
