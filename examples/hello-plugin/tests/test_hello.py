"""The plugin's proof: suites it inherits, and what only it promises."""

from pathlib import Path

from aether_hello import hooks
from aether_hello.table import HelloTable

from aether_core.testing import HooksSuite, RuntimeSuite

GREETING = Path(__file__).parents[1] / "greeting-1.0.0.sh"


class TestHooks(HooksSuite):
    name = "hello"


class TestShell(RuntimeSuite):
    name = "sh"
    sees_truncation = False  # The first half of a script is a script.

    def artifact(self, directory: Path) -> Path:
        return GREETING


def test_the_table_says_which_versions_are_forbidden() -> None:
    tables = {"hello": HelloTable(forbidden_suffix="-beta")}
    assert hooks.aether_admit_deployment({"version": "2.0.0"}, tables) is None
    refusal = hooks.aether_admit_deployment({"version": "2.0.0-beta"}, tables)
    assert refusal is not None
    assert "-beta" in refusal
