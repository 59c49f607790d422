"""The hooks that plugins may implement, and the events they may hear of.

Part of the public API for plugins. A hook is a plain function: it answers a value and does no
input or output. Modules with hooks are imported by every `aether` command, so they must be cheap;
they say `api_version = 1`, the number they were written for.

An implementation takes the arguments it needs and may leave out the others. A plugin's hooks are
called one at a time, on a thread of the plugin's own; one that does not come back within five
seconds counts as one that raised. `tables` are the plugin's own tables of cluster.toml, as the
models it declared; a table that is not in the file is not among them. They are what they were when
the cluster was made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:  # Every command imports this module; only the leader judges.
    from aether_core.evidence import Evidence
    from aether_core.judge import Judgement, Limits

#: Grows when a Protocol or hook changes in a way that breaks plugins. A plugin writes the number:
#: with this name in its place it would always claim to fit.
API_VERSION = 1

PROJECT = "aether"
GROUP = "aether"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class DeploymentMoved:
    """A deployment went from one state to another; written before anybody is told."""

    deployment: str
    blueprint: str
    before: str
    after: str
    why: str


Event = DeploymentMoved


@hookspec
def aether_commands() -> Mapping[str, str]:
    """Return the commands to add: name to "module:attribute" of a click command.

    Called once by every `aether` command. The module is imported when its command is used.
    """
    raise AssertionError("a specification is never called")


@hookspec
def aether_config_tables() -> Mapping[str, str]:
    """Return the tables to add to cluster.toml: name to "module:attribute" of a pydantic model.

    Called when a cluster.toml is read.
    """
    raise AssertionError("a specification is never called")


@hookspec
def aether_admit_deployment(plan: Mapping[str, Any], tables: Mapping[str, Any]) -> str | None:
    """Return why this deployment must not begin, or None.

    Called on the node that was asked, after all other checks and before anything is written. One
    objection refuses; so does an implementation that raises. `plan` is what `--dry-run --json`
    shows.
    """
    raise AssertionError("a specification is never called")


@hookspec
def aether_judge(
    evidence: "Evidence", limits: "Limits", tables: Mapping[str, Any]
) -> "Judgement | None":
    """Judge a new version instead of the judge that Aether has, or return None to leave it to it.

    Called on the leader, once a second for each slice that runs in two versions. The first answer
    counts, in order of the plugins' names; one that raises leaves the verdict INCONCLUSIVE.
    """
    raise AssertionError("a specification is never called")


@hookspec
def aether_event(event: Event, tables: Mapping[str, Any]) -> None:
    """Hear of something that happened, at most once and in order.

    Called on the leader, which does not wait for it; what is raised is logged only.
    """
    raise AssertionError("a specification is never called")
