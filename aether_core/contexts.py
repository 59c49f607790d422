"""Contexts: which clusters a user knows, each in a file that only he reads."""

from dataclasses import dataclass, field

from aether_core.boot import pretty, write_private
from aether_core.errors import NotFound
from aether_core.model import decode
from aether_core.settings import Settings

CURRENT_FILE = "current-context"


@dataclass(frozen=True)
class Context:
    """How to reach a cluster, and as whom."""

    name: str
    endpoints: tuple[str, ...]
    ca_pem: str = field(repr=False)
    token: str = field(repr=False)


def save_context(settings: Settings, context: Context, *, make_current: bool) -> None:
    """Keep the context."""
    directory = settings.config_dir / "contexts"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(directory / f"{context.name}.json", pretty(context))
    if make_current:
        use_context(settings, context.name)


def load_context(settings: Settings, name: str | None = None) -> Context:
    """Return the named, else the chosen, else the current context. Errors: NotFound."""
    wanted = name or settings.context or current_context(settings)
    if wanted is None:
        raise NotFound(
            "no cluster is known here",
            hint="make one: aether cluster bootstrap --config cluster.toml",
        )
    try:
        path = settings.config_dir / "contexts" / f"{wanted}.json"
        return decode(Context, path.read_bytes())
    except FileNotFoundError:
        known = ", ".join(context_names(settings)) or "none"
        raise NotFound(f"context '{wanted}' not found; known: {known}") from None


def context_names(settings: Settings) -> list[str]:
    return sorted(path.stem for path in (settings.config_dir / "contexts").glob("*.json"))


def current_context(settings: Settings) -> str | None:
    """Return the name of the context that commands use, if one was chosen."""
    try:
        return (settings.config_dir / CURRENT_FILE).read_text().strip() or None
    except FileNotFoundError:
        return None


def use_context(settings: Settings, name: str) -> None:
    """Make it the current one. Errors: NotFound."""
    load_context(settings, name)
    write_private(settings.config_dir / CURRENT_FILE, name.encode())


def remove_context(settings: Settings, name: str) -> None:
    """Forget the context; one that is not known is already forgotten."""
    (settings.config_dir / "contexts" / f"{name}.json").unlink(missing_ok=True)
    if current_context(settings) == name:
        (settings.config_dir / CURRENT_FILE).unlink(missing_ok=True)
