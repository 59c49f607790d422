"""Finding plugins: stevedore finds and builds what the configuration names; pluggy calls everyone
who listens. The only door to both.

A plugin that cannot be imported, raises, or clashes with another is kept in the inventory with its
reason; it never stops a command or a loop that does not need it.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from aether_core import hookspecs
from aether_core.drivers import API_VERSION
from aether_core.errors import (
    AetherError,
    DriverBroken,
    DriverConflict,
    DriverNotFound,
    HookFailed,
    PluginError,
    Refused,
)
from aether_core.hookspecs import GROUP, PROJECT, Event

DRIVER_GROUPS = ("aether.providers", "aether.strategies", "aether.runtimes")
DISABLE_VARIABLE = "AETHER_DISABLE_PLUGINS"  # Distributions, with commas; "all" for every hook.
TRACE_VARIABLE = "AETHER_TRACE_HOOKS"


@dataclass(frozen=True)
class Plugin:
    """One line of `aether plugin list`."""

    distribution: str
    version: str
    kind: str  # The group: aether.providers, ..., or aether for hooks.
    name: str
    provides: str
    state: str  # ok, broken, disabled, clash
    why: str = ""
    details: str = ""  # The traceback of a broken one.


def load_driver(group: str, name: str) -> type[Any]:
    """Return the class that provides driver `name`; `blue-green` finds `blue_green`.

    Errors: DriverNotFound, DriverConflict, DriverBroken.
    """
    name = name.replace("-", "_")
    found = list(entry_points(group=group, name=name))
    if not found:
        installed = ", ".join(sorted(entry_points(group=group).names)) or "none"
        package = f"aether-{name.replace('_', '-')}"
        raise DriverNotFound(
            f"driver '{name}' not found in {group}; installed: {installed}",
            hint=f"uv pip install {package}",
        )
    distributions = sorted({_distribution(point)[0] for point in found})
    if len(distributions) > 1:
        raise DriverConflict(
            f"driver '{name}' in {group} is provided by {' and '.join(distributions)}",
            hint=f"uninstall all but one of them: uv pip uninstall {distributions[-1]}",
        )
    return _load_class(group, found[0])


def driver_names(group: str) -> list[str]:
    """Return the names of the installed drivers of a group."""
    return sorted(entry_points(group=group).names)


def _load_class(group: str, point: EntryPoint) -> type[Any]:
    # Imported here: stevedore costs 50 ms, which commands without a driver need not pay.
    from stevedore import DriverManager  # noqa: PLC0415

    class FreshDriverManager(DriverManager[type[Any]]):
        """Stevedore's own list comes from a cache on disk that misses what was just installed."""

        def list_entry_points(self) -> list[EntryPoint]:
            return [point]

    distribution = _distribution(point)[0]
    try:
        manager = FreshDriverManager(group, point.name, invoke_on_load=False)
    except Exception as error:  # Foreign code may raise anything on import.
        raise DriverBroken(
            f"driver '{point.name}' of {distribution} cannot be loaded: "
            f"{type(error).__name__}: {error}",
            hint="aether plugin list --verbose",
        ) from error
    # `driver` would call a class whose instance is falsy; the extension's plugin never does.
    kind = manager.extensions[0].plugin
    version = getattr(kind, "api_version", None)
    if version != API_VERSION:
        raise DriverBroken(
            f"driver '{point.name}' of {distribution} is written for plugin API {version}, "
            f"this is {API_VERSION}",
            hint=f"uv pip install --upgrade {distribution}",
        )
    return kind


class Hooks:
    """The installed hook plugins behind one typed method per hook."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._plugins: dict[str, Plugin] = {}
        chosen = entry_points(group=GROUP) if points is None else points
        for point in sorted(chosen, key=lambda point: point.name):
            self._register(point)

    @property
    def plugins(self) -> list[Plugin]:
        """What is installed, with what went wrong so far."""
        return [self._plugins[name] for name in sorted(self._plugins)]

    @cached_property
    def commands(self) -> dict[str, str]:
        """Command name to "module:attribute"."""
        return self._merged("aether_commands")

    @cached_property
    def config_tables(self) -> dict[str, type[Any]]:
        """Table name to its pydantic model."""
        found: dict[str, type[Any]] = {}
        for name, path in self._merged("aether_config_tables").items():
            try:
                found[name] = import_attribute(path)
            except Exception as error:  # noqa: BLE001  Foreign code may raise anything.
                self._break(self._owner(path), error)
        return found

    def refuse_commands(self, taken: Iterable[str]) -> None:
        """Mark the plugins that claim a command of ours as clashing."""
        for name in sorted(set(taken) & set(self.commands)):
            owner = self._owner(self.commands[name])
            why = f"'{name}' is a command of aether itself"
            self._plugins[owner] = _changed(self._plugins[owner], "clash", why)

    def admit_deployment(self, plan: Mapping[str, Any]) -> None:
        """Ask every plugin. Errors: Refused naming who objects; HookFailed when one raises."""
        for name, call in self._implementations("aether_admit_deployment"):
            try:
                reason = call(plan=plan)
            except Exception as error:  # Who cannot answer has not admitted it.
                self._break(name, error)
                raise HookFailed(
                    f"plugin '{name}' failed while asked to admit the deployment: {error}",
                    hint=f"repair it, or set {DISABLE_VARIABLE}={name} on the nodes",
                    plugin=name,
                ) from error
            if reason:
                raise Refused(f"plugin '{name}' refuses the deployment: {reason}", by=name)

    def event(self, event: Event) -> None:
        """Tell every plugin; what one raises is kept in its line and goes no further."""
        for name, call in self._implementations("aether_event"):
            try:
                call(event=event)
            except Exception as error:  # noqa: BLE001  A listener must not stop what it hears of.
                self._break(name, error)

    def _register(self, point: EntryPoint) -> None:
        distribution, version = _distribution(point)
        line = Plugin(distribution, version, GROUP, point.name, "", "ok")
        disabled = os.environ.get(DISABLE_VARIABLE, "").split(",")
        if "all" in disabled or distribution in disabled or point.name in disabled:
            self._plugins[point.name] = _changed(line, "disabled", f"by {DISABLE_VARIABLE}")
            return
        self._plugins[point.name] = line
        try:
            module = point.load()
            self._manager.register(module, name=point.name)
            self._refuse_misspelt(module)
        except Exception as error:  # noqa: BLE001  Foreign code may raise anything on import.
            self._break(point.name, error)
            return
        provides = [caller.name for caller in self._manager.get_hookcallers(module) or []]
        self._plugins[point.name] = _changed(line, "ok", provides=", ".join(sorted(provides)))

    def _refuse_misspelt(self, module: object) -> None:
        """A hook that nobody calls is a mistake: say so instead of ignoring it."""
        known = {name for name in vars(hookspecs) if name.startswith("aether_")}
        strange = [
            name
            for name, value in vars(module).items()
            if getattr(value, PROJECT + "_impl", None) is not None and name not in known
        ]
        if strange:
            self._manager.unregister(module)
            raise PluginError(f"unknown hook {', '.join(strange)}")

    def _implementations(self, hook: str) -> list[tuple[str, Callable[..., Any]]]:
        """Return each plugin's function, in name order, traced when asked for."""
        found = []
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            found.append((implementation.plugin_name, implementation.function))
        if os.environ.get(TRACE_VARIABLE):
            for name, _ in sorted(found):
                print(f"hook {hook} -> {name}", file=sys.stderr)  # noqa: T201
        return sorted(found, key=lambda pair: pair[0])

    def _merged(self, hook: str) -> dict[str, str]:
        """Join what the plugins contribute; a name taken twice stays with the first."""
        merged: dict[str, str] = {}
        owners: dict[str, str] = {}
        for name, call in self._implementations(hook):
            try:
                offered = dict(call())
            except Exception as error:  # noqa: BLE001  Foreign code may raise anything.
                self._break(name, error)
                continue
            for key, path in offered.items():
                if key in merged:
                    why = f"'{key}' is already provided by '{owners[key]}'"
                    self._plugins[name] = _changed(self._plugins[name], "clash", why)
                else:
                    merged[key], owners[key] = path, name
        return merged

    def _owner(self, path: str) -> str:
        package = path.partition(":")[0].partition(".")[0]
        for name, line in self._plugins.items():
            if line.distribution.replace("-", "_") == package:
                return name
        return next(iter(self._plugins))

    def _break(self, name: str, error: BaseException) -> None:
        details = "".join(traceback.format_exception(error))
        why = f"{type(error).__name__}: {error}"
        self._plugins[name] = _changed(self._plugins[name], "broken", why, details=details)


def inventory(hooks: Hooks, *, taken: Iterable[str] = ()) -> list[Plugin]:
    """Return every installed plugin, hooks and drivers, broken ones too.

    `taken`: the names of our own commands, which no plugin may claim.
    """
    hooks.refuse_commands(taken)
    hooks.config_tables  # noqa: B018  Asking shows who fails or clashes.
    lines = list(hooks.plugins)
    for group in DRIVER_GROUPS:
        for point in sorted(entry_points(group=group), key=lambda point: point.name):
            distribution, version = _distribution(point)
            line = Plugin(distribution, version, group, point.name, point.value, "ok")
            try:
                load_driver(group, point.name)
            except DriverConflict as error:
                line = _changed(line, "clash", error.message)
            except AetherError as error:
                details = "".join(traceback.format_exception(error))
                line = _changed(line, "broken", error.message, details=details)
            lines.append(line)
    return lines


def import_attribute(path: str) -> Any:
    """Return what "module:attribute" names. Errors: PluginError."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"'{path}' cannot be loaded: {error}") from error


def _distribution(point: EntryPoint) -> tuple[str, str]:
    found = point.dist
    return (found.name, found.version) if found else ("unknown", "?")


def _changed(
    line: Plugin, state: str, why: str = "", *, provides: str | None = None, details: str = ""
) -> Plugin:
    return Plugin(
        line.distribution,
        line.version,
        line.kind,
        line.name,
        line.provides if provides is None else provides,
        state,
        why,
        details,
    )
