"""What aether asks this plugin.

Every `aether` command imports this module, so it imports nothing heavy: what it adds is named
as "module:attribute" and imported when it is used.
"""

import logging
from collections.abc import Mapping
from typing import Any

from aether_core.hookspecs import DeploymentMoved, Event, hookimpl

api_version = 1  # The number this was written for, not whatever the installed core has.

ENDS = {"COMPLETED", "ROLLED_BACK", "FAILED"}
FORBIDDEN_SUFFIX = "-forbidden"  # Of versions, where cluster.toml has no [hello].


@hookimpl
def aether_commands() -> Mapping[str, str]:
    return {"hello": "aether_hello.command:hello"}


@hookimpl
def aether_config_tables() -> Mapping[str, str]:
    return {"hello": "aether_hello.table:HelloTable"}


@hookimpl
def aether_admit_deployment(plan: Mapping[str, Any], tables: Mapping[str, Any]) -> str | None:
    table = tables.get("hello")
    suffix = table.forbidden_suffix if table else FORBIDDEN_SUFFIX
    if plan["version"].endswith(suffix):
        return f"versions that end with '{suffix}' are forbidden"
    return None


@hookimpl
def aether_event(event: Event) -> None:  # Without `tables`: a hook takes only what it needs.
    if isinstance(event, DeploymentMoved) and event.after in ENDS:
        # A warning, because that is what a node's log keeps of other people's loggers.
        log = logging.getLogger("aether_hello")
        log.warning("deployment of '%s' is over: %s", event.blueprint, event.after)
