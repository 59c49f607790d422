"""The hooks that plugins may implement, and the events they may hear of.

Part of the public API for plugins. A hook is a plain function: it answers a value and does no
input or output. Modules with hooks are imported by every `aether` command, so they must be cheap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pluggy

from aether_core.evidence import Evidence
from aether_core.judge import Judgement, Limits

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
def aether_admit_deployment(plan: Mapping[str, Any]) -> str | None:
    """Return why this deployment must not begin, or None.

    Called on the node that was asked, after all other checks and before anything is written. One
    objection refuses; so does an implementation that raises. `plan` is what `--dry-run` shows.
    """
    raise AssertionError("a specification is never called")


@hookspec
def aether_judge(evidence: Evidence, limits: Limits) -> Judgement | None:
    """Judge a new version instead of the judge that Aether has, or return None to leave it to it.

    Called on the leader, once a second for each slice that runs in two versions. The first answer
    counts, in order of the plugins' names; one that raises leaves the verdict INCONCLUSIVE.
    """
    raise AssertionError("a specification is never called")


@hookspec
def aether_event(event: Event) -> None:
    """Hear of something that happened. Called on the leader; what is raised is logged only."""
    raise AssertionError("a specification is never called")
