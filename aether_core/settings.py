"""A user's or a node's own settings: `aether.toml`, overruled by AETHER_* variables."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from aether_core.config import problems_of, read_toml
from aether_core.errors import ConfigError, Problem

PREFIX = "AETHER_"


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "aether"


class Settings(BaseSettings):
    """Environment beats file beats default."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    data_dir: Path = Field(
        default_factory=lambda: _xdg("XDG_DATA_HOME", ".local/share"),
        description="Where clusters made from this computer are kept. Left out: "
        "`$XDG_DATA_HOME/aether`, else `~/.local/share/aether`.",
    )
    config_dir: Path = Field(
        default_factory=lambda: _xdg("XDG_CONFIG_HOME", ".config"),
        description="Where contexts are kept. Left out: `$XDG_CONFIG_HOME/aether`, else "
        "`~/.config/aether`.",
    )
    context: str | None = Field(None, description="The context to use instead of the current one.")
    etcd_path: str | None = Field(
        None, description="The etcd program of nodes on this computer; otherwise etcd in PATH."
    )
    envoy_path: str | None = Field(
        None, description="The Envoy program of nodes on this computer; otherwise its wheel's."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="What the agents of clusters made from now on write to their log."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = settings_file()
        file = TomlConfigSettingsSource(settings_cls, path if path.exists() else None)
        return init_settings, env_settings, file


def settings_file() -> Path:
    """Return where aether.toml is looked for: AETHER_SETTINGS, or the configuration directory."""
    given = os.environ.get("AETHER_SETTINGS")
    if given:
        return Path(given)
    configured = os.environ.get("AETHER_CONFIG_DIR")
    base = Path(configured) if configured else _xdg("XDG_CONFIG_HOME", ".config")
    return base / "aether.toml"


def load_settings() -> Settings:
    """Return the settings in force. Errors: ConfigError naming each variable or file and line."""
    path = settings_file()
    is_named = bool(os.environ.get("AETHER_SETTINGS"))
    document = read_toml(path) if is_named or path.exists() else None
    try:
        return Settings()
    except ValidationError as error:
        problems = problems_of(error, document, file=str(path), model=Settings)
        found = [_where(problem) for problem in problems]
        raise ConfigError("settings are not valid", problems=tuple(found)) from error


def _where(problem: Problem) -> Problem:
    """Name the environment variable instead of the file where that is what was read."""
    variable = PREFIX + problem.key.upper()
    if variable in os.environ:
        return Problem(f"environment variable {variable}", 0, "", problem.reason, problem.hint)
    return problem
