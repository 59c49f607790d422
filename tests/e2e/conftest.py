"""A cluster of three and the shop's artifacts, made once; a desk of its own for who needs one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.desk import SHOP, Desk


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """The folder with the shop's artifacts, in two versions each."""
    for version in ("1.0.0", "1.1.0"):
        subprocess.run([sys.executable, SHOP / "build.py", version], check=True)
    return SHOP / "target"


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory, artifacts: Path) -> Iterator[Desk]:
    """A desk whose current context is a cluster of three that holds the shop's artifacts."""
    desk = Desk(tmp_path_factory.mktemp("three"))
    try:
        desk.aether("cluster", "bootstrap", "--config", desk.config("three", 3))
        for file in sorted(artifacts.glob("shop*")):
            desk.aether("artifact", "upload", file)
        yield desk
    finally:
        desk.aether("cluster", "destroy", "three", "--yes")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk without a cluster; what a test makes there and forgets is removed."""
    made = Desk(tmp_path)
    yield made
    for name in made.aether("cluster", "list", "--json").document["clusters"]:
        made.aether("cluster", "destroy", name["name"], "--yes")
