"""A plugin with hooks: what it may contribute, the thread it is called on, what went wrong."""

import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pluggy

from aether_core import hookspecs
from aether_core.errors import AetherError, PluginError
from aether_core.installed import Plugin
from aether_core.worker import Worker

TRACE_VARIABLE = "AETHER_TRACE_HOOKS"


@dataclass
class Listener:
    """One plugin with hooks: its line, its thread, its functions and tables."""

    line: Plugin
    worker: Worker
    hooks: dict[str, pluggy.HookImpl] = field(default_factory=dict)
    tables: dict[str, type[Any]] = field(default_factory=dict)

    def asked(self, hook: str, values: Mapping[str, Any], **arguments: Any) -> Callable[[], Any]:
        """Return the call of a hook, to be made on the plugin's thread."""
        if os.environ.get(TRACE_VARIABLE):
            print(f"hook {hook} -> {self.line.name}", file=sys.stderr)  # noqa: T201
        implementation = self.hooks[hook]

        def call() -> Any:
            # By way of JSON: there a model may be strict and still get its tuples from lists.
            given = {
                name: model.model_validate_json(json.dumps(values[name]))
                for name, model in self.tables.items()
                if name in values
            }
            known = {**arguments, "tables": given}
            return implementation.function(
                **{name: known[name] for name in implementation.argnames}
            )

        return call

    def broke(self, error: BaseException) -> None:
        self.line = broken(self.line, error)

    def clashes(self, why: str) -> None:
        self.line = replace(self.line, state="clash", why=why)


def hooks_of(manager: pluggy.PluginManager, plugin: object, name: str) -> dict[str, Any]:
    """Return the plugin's hooks. Errors: PluginError for what would be ignored or never work."""
    manager.register(plugin, name=name)
    hooks = {}
    for caller in manager.get_hookcallers(plugin) or []:
        (found,) = (one for one in caller.get_hookimpls() if one.plugin is plugin)
        if not caller.has_spec() and not found.optionalhook:
            raise PluginError(f"unknown hook '{caller.name}'")
        if found.wrapper or found.hookwrapper or inspect.iscoroutinefunction(found.function):
            raise PluginError(f"hook '{caller.name}' is not a plain function")
        if caller.has_spec():
            hooks[caller.name] = found
    known = {name for name in vars(hookspecs) if name.startswith("aether_")}
    if unmarked := sorted((known & set(dir(plugin))) - set(hooks)):
        raise PluginError(f"hook '{unmarked[0]}' lacks @hookimpl")
    if not hooks:
        raise PluginError("it has no hooks")
    return hooks


def broken(line: Plugin, error: BaseException) -> Plugin:
    """Return the line of a plugin that raised."""
    why = error.message if isinstance(error, AetherError) else f"{type(error).__name__}: {error}"
    details = "".join(traceback.format_exception(error))
    return replace(line, state="broken", why=" ".join(why.split()), details=details)
