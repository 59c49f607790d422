"""Finding plugins: stevedore finds and builds what the configuration names; pluggy calls everyone
who listens. The only door to both.

A plugin that cannot be imported, raises, hangs, or clashes with another is kept in the inventory
with its reason; it never stops a command or a loop that does not need it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pluggy

from aether_core import hookspecs
from aether_core.errors import (
    AetherError,
    DriverBroken,
    DriverConflict,
    DriverNotFound,
    HookFailed,
    PluginError,
    Refused,
)
from aether_core.hookspecs import API_VERSION, GROUP, PROJECT, Event
from aether_core.installed import (
    Plugin,
    entry_points_of,
    import_attribute,
    line_of,
    refuse_unreadable,
)
from aether_core.listener import Listener, broken, hooks_of
from aether_core.worker import Worker

if TYPE_CHECKING:
    from aether_core.evidence import Evidence
    from aether_core.judge import Judgement, Limits

DRIVER_GROUPS = ("aether.providers", "aether.strategies", "aether.runtimes")
DISABLE_VARIABLE = "AETHER_DISABLE_PLUGINS"  # Distributions, with commas; "all" for every hook.
# Far longer than a hook or the import of its module needs, on a slow and busy machine too.
LIMIT_S = 5.0


def load_driver(group: str, name: str) -> type[Any]:
    """Return the class that provides driver `name`; `blue-green` finds `blue_green`.

    Errors: DriverNotFound, DriverConflict, DriverBroken.
    """
    points = entry_points_of(group)
    found = [point for point in points if _plain(point.name) == _plain(name)]
    if not found:
        installed = ", ".join(sorted({point.name for point in points})) or "none"
        raise DriverNotFound(
            f"driver '{name}' not found in {group}; installed: {installed}",
            hint=f"uv pip install aether-{name.replace('_', '-')}",
        )
    distributions = sorted({line_of(point).distribution for point in found})
    if len(distributions) > 1:
        raise DriverConflict(
            f"driver '{name}' in {group} is provided by {' and '.join(distributions)}",
            hint=f"uninstall all but one of them: uv pip uninstall {distributions[-1]}",
        )
    return _load_class(group, found[0])


def build_driver(group: str, name: str, *arguments: Any) -> Any:
    """Return a driver, built. Errors: as `load_driver`; AetherErrors of the driver itself."""
    kind = load_driver(group, name)
    with driver_errors(name):
        return kind(*arguments)


@contextmanager
def driver_errors(name: str) -> Iterator[None]:
    """Turn what a driver raises unforeseen into a DriverBroken that names it."""
    try:
        yield
    except AetherError:
        raise
    except Exception as error:  # A driver's own code may raise anything.
        raise DriverBroken(f"driver '{name}' failed: {type(error).__name__}: {error}") from error


def driver_names(group: str) -> list[str]:
    """Return the names of the installed drivers of a group."""
    return sorted({point.name for point in entry_points_of(group)})


def runtime_suffixes() -> dict[str, str]:
    """Return what artifacts' file names end with, and the runtime each is for.

    Broken runtimes have none: they must not stop what another runtime is for.
    """
    suffixes: dict[str, str] = {}
    for name in driver_names("aether.runtimes"):
        try:
            suffix: str = load_driver("aether.runtimes", name).suffix
        except PluginError:
            continue
        if suffix in suffixes:
            both = f"'{suffixes[suffix]}' and '{name}'"
            raise DriverConflict(f"two runtimes are for '{suffix}': {both}")
        suffixes[suffix] = name
    return suffixes


def inventory(hooks: "Hooks") -> list[Plugin]:
    """Return every installed plugin, hooks and drivers, broken ones too. Errors: PluginError."""
    refuse_unreadable()
    hooks.check()
    points = [point for group in DRIVER_GROUPS for point in entry_points_of(group)]
    return [*hooks.plugins, *map(_driver_line, points)]


def _driver_line(point: EntryPoint) -> Plugin:
    line = line_of(point, provides=point.value)
    load = partial(load_driver, point.group, point.name)
    try:
        Worker(f"driver {point.name}").call(load, limit_s=LIMIT_S)
    except DriverConflict as error:
        return replace(line, state="clash", why=error.message)
    except Exception as error:  # noqa: BLE001  Foreign code may raise anything.
        return broken(line, error)
    return line


def _load_class(group: str, point: EntryPoint) -> type[Any]:
    # Imported here: stevedore costs 50 ms, which commands without a driver need not pay.
    from stevedore import DriverManager  # noqa: PLC0415

    class FreshDriverManager(DriverManager[type[Any]]):
        """Stevedore's own list comes from a cache on disk that misses what was just installed."""

        def list_entry_points(self) -> list[EntryPoint]:
            return [point]

    distribution = line_of(point).distribution
    what = f"driver '{point.name}' of {distribution}"
    try:
        manager = FreshDriverManager(group, point.name, invoke_on_load=False)
    except (Exception, SystemExit) as error:  # Foreign code may raise anything on import.
        raise DriverBroken(
            f"{what} cannot be loaded: {type(error).__name__}: {error}",
            hint="aether plugin list --verbose",
        ) from error
    # `driver` would call a class whose instance is falsy; the extension's plugin never does.
    kind = manager.extensions[0].plugin
    if not isinstance(kind, type):
        raise DriverBroken(f"{what} is no class: {point.value}")
    _refuse_other_api(kind, what, distribution)
    return kind


def _refuse_other_api(plugin: object, what: str, distribution: str) -> None:
    version = getattr(plugin, "api_version", None)
    if version != API_VERSION:
        written = "says no api_version" if version is None else f"is written for API {version}"
        raise DriverBroken(
            f"{what} {written}, this is {API_VERSION}",
            hint=f"uv pip install --upgrade {distribution}",
        )


class Hooks:
    """The installed hook plugins behind one typed method per hook."""

    def __init__(
        self,
        points: Iterable[EntryPoint] | None = None,
        *,
        own_commands: Iterable[str] = (),
        tables: Mapping[str, Any] | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        """`own_commands`: of aether itself; `tables`: plugins' own tables of cluster.toml."""
        self._limit_s = limit_s
        self._own_commands = frozenset(own_commands)
        self._tables = dict(tables or {})
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        chosen = entry_points_of(GROUP) if points is None else points
        self._listeners = [self._load(point, manager) for point in chosen]
        if self._tables:
            self.config_tables  # noqa: B018  Here, and not when a loop waits for it.

    @property
    def plugins(self) -> list[Plugin]:
        """What is installed, with what went wrong so far."""
        return [listener.line for listener in self._listeners]

    @cached_property
    def commands(self) -> dict[str, str]:
        """Command name to "module:attribute"."""
        offers = self._offers("aether_commands", self._own_commands)
        return {name: path for _, name, path in offers}

    @cached_property
    def config_tables(self) -> dict[str, type[Any]]:
        """Table name to its pydantic model."""
        # Imported here: pydantic costs 200 ms, which commands without a configuration need not pay.
        from aether_core.cluster_config import ClusterConfig, table_model  # noqa: PLC0415

        found: dict[str, type[Any]] = {}
        own = ClusterConfig.model_fields
        for listener, name, path in self._offers("aether_config_tables", own):
            try:
                load = partial(table_model, path)
                found[name] = listener.worker.call(load, limit_s=self._limit_s)
                listener.tables[name] = found[name]
            except Exception as error:  # noqa: BLE001  Foreign code may raise anything.
                listener.broke(error)
        return found

    def check(self) -> None:
        """Ask all that can be asked at any time: who fails or clashes is marked."""
        self.config_tables  # noqa: B018
        for listener, _, path in self._offers("aether_commands", self._own_commands):
            try:
                listener.worker.call(partial(import_attribute, path), limit_s=self._limit_s)
            except Exception as error:  # noqa: BLE001  Foreign code may raise anything.
                listener.broke(error)

    async def admit_deployment(self, plan: Mapping[str, Any]) -> None:
        """Ask every plugin. Errors: Refused naming who objects; HookFailed when one raises."""
        hook = "aether_admit_deployment"
        for listener in self._with(hook):
            name, call = listener.line.name, listener.asked(hook, self._tables, plan=plan)
            try:
                reason = await listener.worker.call_aside(call, limit_s=self._limit_s)
            except Exception as error:  # Who cannot answer has not admitted it.
                listener.broke(error)
                raise HookFailed(
                    f"plugin '{name}' failed while asked to admit the deployment: {error}",
                    hint=f"repair it, or set {DISABLE_VARIABLE}={name} on the nodes",
                    plugin=name,
                ) from error
            if reason:
                raise Refused(f"plugin '{name}' refuses the deployment: {reason}", by=name)

    async def judge(self, evidence: "Evidence", limits: "Limits") -> "Judgement":
        """Return the first judgement of a plugin, else our own."""
        # Imported here: only the leader judges.
        from aether_core.judge import Judgement, Verdict, judge  # noqa: PLC0415

        hook = "aether_judge"
        for listener in self._with(hook):
            call = listener.asked(hook, self._tables, evidence=evidence, limits=limits)
            try:
                judgement: Judgement | None = await listener.worker.call_aside(
                    call, limit_s=self._limit_s
                )
            except Exception as error:  # noqa: BLE001  Foreign code may raise anything.
                listener.broke(error)
                why = f"plugin '{listener.line.name}' failed to judge: {error}"
                return Judgement(Verdict.INCONCLUSIVE, why, (), 0)
            if judgement is not None:
                return judgement
        return judge(evidence, limits)

    def event(self, event: Event) -> None:
        """Tell every plugin and wait for none; what one raises is logged and goes no further."""
        for listener in self._with("aether_event"):
            call = listener.asked("aether_event", self._tables, event=event)
            try:
                listener.worker.submit(call).add_done_callback(partial(_heard, listener))
            except PluginError as error:
                _complain(listener, error)

    def _load(self, point: EntryPoint, manager: pluggy.PluginManager) -> Listener:
        line = line_of(point)
        listener = Listener(line, Worker(f"plugin {line.name}"))
        disabled = os.environ.get(DISABLE_VARIABLE, "").split(",")
        if {"all", line.distribution, line.name} & set(disabled):
            listener.line = replace(line, state="disabled", why=f"by {DISABLE_VARIABLE}")
            return listener
        try:
            plugin = listener.worker.call(point.load, limit_s=self._limit_s)
            _refuse_other_api(plugin, f"plugin '{line.name}'", line.distribution)
            listener.hooks = hooks_of(manager, plugin, f"{line.distribution}:{line.name}")
        except Exception as error:  # noqa: BLE001  Foreign code may raise anything on import.
            listener.broke(error)
        else:
            listener.line = replace(line, provides=", ".join(sorted(listener.hooks)))
        return listener

    def _with(self, hook: str) -> list[Listener]:
        return [listener for listener in self._listeners if hook in listener.hooks]

    def _offers(self, hook: str, own: Iterable[str]) -> list[tuple[Listener, str, str]]:
        """Return what the plugins add: who, its name, its path. A taken name is a clash."""
        owners = dict.fromkeys(own, "aether itself")
        offers = []
        for listener in self._with(hook):
            try:
                call = listener.asked(hook, {})
                answer = dict(listener.worker.call(call, limit_s=self._limit_s))
                offered = {str(name): str(path) for name, path in answer.items()}
            except Exception as error:  # noqa: BLE001  Foreign code may raise anything.
                listener.broke(error)
                continue
            for name, path in offered.items():
                if name in owners:
                    listener.clashes(f"'{name}' is already provided by {owners[name]}")
                else:
                    owners[name] = f"'{listener.line.name}'"
                    offers.append((listener, name, path))
        return offers


def _heard(listener: Listener, told: Future[Any]) -> None:
    error = told.exception()
    if error is not None:
        _complain(listener, error)


def _complain(listener: Listener, error: BaseException) -> None:
    """Keep what went wrong while nobody waited, and have it in the node's log."""
    # Imported here: commands have no log, and it costs 100 ms.
    from loguru import logger  # noqa: PLC0415

    listener.broke(error)
    logger.opt(exception=error).error("plugin '{}' failed to hear an event", listener.line.name)


def _plain(name: str) -> str:
    return name.replace("-", "_")
