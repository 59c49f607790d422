"""What every unit test gets: an environment that is not the developer's own."""

import os
from datetime import UTC, datetime

import pytest
from hypothesis import settings

# No wall clock decides: two busy cores may make one example slow.
settings.register_profile("unit", deadline=None, max_examples=30)
settings.load_profile("unit")

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AETHER_"):
            monkeypatch.delenv(name)
