"""What a driver plugin implements: one Protocol per extension point, chosen by a name in a file.

Part of the public API for plugins. Drivers are found through entry points (`plugins.py`), built
on first use, and do all the input and output of their kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from aether_core import hookspecs
from aether_core.model import Fleet, InstanceSpec, NodeId, Ports

API_VERSION = hookspecs.API_VERSION


class MachineState(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"


@dataclass(frozen=True)
class MachineSpec:
    """A machine to make, which then runs a node agent.

    `files`: path below the node's data directory to content. They hold secrets: never log them.
    `ports`: what the node will listen on.
    """

    cluster: str
    node: NodeId
    slot: int  # Counts from 1.
    labels: Mapping[str, str]
    ports: Ports
    files: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Machine:
    """A machine that exists at the provider."""

    id: str
    node: NodeId
    address: str
    state: MachineState
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Capabilities:
    """What a provider has, as data: read before anything is called."""

    has_balancer: bool = False
    has_certificates: bool = False
    shares_host: bool = False  # All machines are one host: ports differ per slot.


class Compute(Protocol):
    """Make, list and remove machines."""

    async def check(self, specs: Sequence[MachineSpec]) -> None:
        """Refuse what `create` would refuse, before anything is made. The specs hold no files.

        Errors: Refused, Unauthorised, QuotaExceeded.
        """
        ...

    async def create(self, spec: MachineSpec) -> Machine:
        """Make the machine, or return the one that exists for this cluster and node.

        Errors: ProviderError, QuotaExceeded, OutcomeUnknown when no answer came.
        """
        ...

    async def list(self, cluster: str) -> list[Machine]:
        """Return every machine that carries the cluster's label, in any state."""
        ...

    async def delete(self, machine: Machine) -> None:
        """Remove the machine and all that was made for it; already gone is success."""
        ...


class Secrets(Protocol):
    """Look secrets up."""

    async def get(self, path: str) -> str:
        """Return the secret at `path`. Errors: NotFound, naming where it was looked for."""
        ...


class Discovery(Protocol):
    """Find the machines of a cluster, also from inside one of them."""

    async def peers(self, cluster: str) -> list[Machine]: ...


class Balancer(Protocol):
    """Spread public traffic over the nodes' ingress ports."""

    async def ensure(self, cluster: str, machines: list[Machine], port: int) -> str:
        """Make the balancer's targets exactly `machines`; return its public address."""
        ...

    async def remove(self, cluster: str) -> None: ...


class Certificates(Protocol):
    """Public certificates for the ingress."""

    async def ensure(self, cluster: str, domains: tuple[str, ...]) -> str:
        """Return the id of a certificate for `domains`, asking for one if there is none."""
        ...


@dataclass(frozen=True)
class ProviderContext:
    """What a provider is built with: `Provider(context)`."""

    cluster: str
    state_dir: Path  # Where this computer keeps what it knows of the cluster.
    region: str = ""
    instance_type: str = ""


@runtime_checkable
class Provider(Protocol):
    """Where machines come from. Group `aether.providers`; config key `[cloud] provider`.

    Built with one argument, a ProviderContext.
    """

    api_version: ClassVar[int]
    capabilities: ClassVar[Capabilities]
    compute: Compute
    secrets: Secrets
    discovery: Discovery
    balancer: Balancer | None
    certificates: Certificates | None


@runtime_checkable
class Runtime(Protocol):
    """Turns an artifact into a process. Group `aether.runtimes`; chosen by the artifact's kind."""

    api_version: ClassVar[int]
    suffix: ClassVar[str]  # What the artifact's file name ends with, dot included.

    async def prepare(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> None:
        """Make `work_dir`, which exists and is empty, ready to run. Errors: IntegrityError."""
        ...

    def command(self, artifact: Path, work_dir: Path, spec: InstanceSpec) -> list[str]:
        """Return the argument list to start; `$PORT` comes in its environment."""
        ...


@dataclass(frozen=True)
class SliceChange:
    """What one deployment does to one slice. No `old`: it is new; no `new`: it goes away."""

    slice: str
    old: Fleet | None
    new: Fleet | None


class Judging(StrEnum):
    """What the judge's verdict means to a stage."""

    NONE = "NONE"  # Nobody is asked.
    VETO = "VETO"  # DEGRADED rolls back; anything else lets it go on.
    REQUIRED = "REQUIRED"  # Only HEALTHY lets it go on; DEGRADED rolls back.


class Lapse(StrEnum):
    """What happens when a stage has waited for as long as it may."""

    ROLL_BACK = "ROLL_BACK"
    GO_ON = "GO_ON"


@dataclass(frozen=True)
class Split:
    """Who gets which version, instead of chance: by a value that the request carries.

    `by`: header, cookie or query; `name`: of that header, cookie or query parameter. A request
    without it gets a cookie that keeps it where chance put it. `force_header`: its value names the
    version, for testers; empty: nobody may choose. `old`, `new`: what the versions are called.
    """

    by: str
    name: str
    force_header: str = ""
    old: str = "A"
    new: str = "B"


@dataclass(frozen=True)
class Stage:
    """One step of a rollout: first capacity, then traffic, then what is no longer needed.

    Units: fractions and `share` 0..1, `hold_s` and `patience_s` seconds.
    """

    share: float  # Of the traffic, to the new fleet.
    new_fraction: float  # Of the new fleet's wanted instances, all READY before traffic moves.
    old_fraction: float  # Of the old fleet's instances that run on once the traffic has moved.
    hold_s: float = 0.0  # The least time at this share.
    is_manual: bool = False  # Goes on only when somebody says so.
    judging: Judging = Judging.NONE
    patience_s: float = 0.0  # The longest time at this share; what then, says `lapse`.
    lapse: Lapse = Lapse.ROLL_BACK
    split: Split | None = None

    @property
    def passes_at_once(self) -> bool:
        """Return whether nothing has to be waited for at this share."""
        return not (self.hold_s or self.is_manual or self.judging == Judging.REQUIRED)


@runtime_checkable
class Strategy(Protocol):
    """How traffic and capacity move. Group `aether.strategies`; pure: values in, values out."""

    api_version: ClassVar[int]

    def stages(
        self, changes: tuple[SliceChange, ...], options: Mapping[str, object]
    ) -> tuple[Stage, ...]:
        """Return the stages in order, at least one.

        `changes`: those with both an old and a new fleet are what traffic moves between; there may
        be none, at the first deployment. Errors: ConfigError for options, with what is allowed.
        """
        ...
