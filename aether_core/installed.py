"""What is installed: entry points as the distributions on `sys.path` declare them, right now.

Read anew each time and without stevedore's cache, which misses what was just installed.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

from aether_core.errors import PluginError


@dataclass(frozen=True)
class Plugin:
    """One line of `aether plugin list`."""

    distribution: str
    version: str
    kind: str  # The group: aether.providers, ..., or aether for hooks.
    name: str
    provides: str = ""
    state: str = "ok"  # ok, broken, disabled, clash
    why: str = ""
    details: str = ""  # The traceback of a broken one.


def entry_points_of(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, by name; of a distribution found twice, the first's."""
    found: dict[tuple[str, str], EntryPoint] = {}
    for distribution in distributions():
        try:
            points = [point for point in distribution.entry_points if point.group == group]
        except Exception:  # noqa: BLE001, S112  Malformed in any way; `refuse_unreadable` names it.
            continue
        for point in points:
            found.setdefault((_name_of(distribution), point.name), point)
    return [found[key] for key in sorted(found, key=lambda key: (key[1], key[0]))]


def refuse_unreadable() -> None:
    """Raise PluginError naming a distribution whose entry points nobody can read.

    Other libraries, pydantic among them, fail on it with a traceback that names nobody.
    """
    for distribution in distributions():
        try:
            distribution.entry_points  # noqa: B018  Reading shows whether it can be read.
        except Exception as error:  # What a distribution says of itself may be anything.
            name = _name_of(distribution)
            raise PluginError(
                f"the entry points of '{name}' cannot be read: {type(error).__name__}: {error}",
                hint=f"uv pip uninstall {name}",
            ) from error


def line_of(point: EntryPoint, provides: str = "") -> Plugin:
    """Return the line of an entry point that nothing is known against."""
    distribution = point.dist
    if distribution is None:
        return Plugin("unknown", "?", point.group, point.name, provides)
    version = _said(distribution, "Version", "?")
    return Plugin(_name_of(distribution), version, point.group, point.name, provides)


def import_attribute(path: str) -> Any:
    """Return what "module:attribute" names. Errors: PluginError."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    # Foreign code may raise anything on import, and sys.exit() would look like success.
    except (Exception, SystemExit) as error:  # Foreign code may raise anything on import.
        raise PluginError(
            f"'{path}' cannot be loaded: {type(error).__name__}: {error}",
            hint="aether plugin list --verbose",
        ) from error


def _name_of(distribution: Distribution) -> str:
    return _said(distribution, "Name", "unknown")


def _said(distribution: Distribution, key: str, otherwise: str) -> str:
    metadata = distribution.metadata
    return metadata[key] if key in metadata else otherwise  # noqa: SIM401  `get` is not typed.
