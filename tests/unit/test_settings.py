"""Settings: environment beats file beats default; what is wrong is named where it stands."""

from pathlib import Path

import pytest

from aether_core.config import json_schema
from aether_core.errors import ConfigError
from aether_core.settings import Settings, load_settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AETHER_CONFIG_DIR", str(tmp_path))
    return tmp_path / "aether.toml"


def test_environment_beats_file_beats_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().log_level == "INFO"
    file.write_text('log_level = "DEBUG"\ndata_dir = "/from/file"\n')
    assert load_settings().log_level == "DEBUG"
    monkeypatch.setenv("AETHER_LOG_LEVEL", "ERROR")
    settings = load_settings()
    assert settings.log_level == "ERROR"
    assert settings.data_dir == Path("/from/file")
    assert settings.config_dir == file.parent


def test_every_mistake_is_named_with_file_line_and_nearest_key(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('etcd_path = 5\n\nlog_levl = "INFO"\n')
    monkeypatch.setenv("AETHER_LOG_LEVEL", "LOUD")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert {(str(problem), problem.hint) for problem in caught.value.problems} == {
        (f"{file}:1: etcd_path: input should be a valid string, not 5", ""),
        (f"{file}:3: log_levl: unknown key", "did you mean 'log_level'?"),
        (
            "environment variable AETHER_LOG_LEVEL: input should be 'DEBUG', 'INFO', 'WARNING' or "
            "'ERROR', not 'LOUD'",
            "",
        ),
    }


def test_a_settings_file_that_is_named_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AETHER_SETTINGS", str(tmp_path / "mine.toml"))
    with pytest.raises(ConfigError, match=r"^file '.*mine.toml' not found$"):
        load_settings()
    (tmp_path / "mine.toml").write_text('context = "mine"\n')
    assert load_settings().context == "mine"


def test_the_json_schema_describes_every_setting() -> None:
    schema = json_schema(Settings)
    assert set(schema["properties"]) == set(Settings.model_fields)
    assert all(entry["description"] for entry in schema["properties"].values())
    assert schema["additionalProperties"] is False
