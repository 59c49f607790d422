"""The conformance kit: what a plugin's author inherits to prove it.

Part of the public API for plugins. Needs pytest and pytest-asyncio, which Aether itself does not
install. A suite is a class whose tests run against one driver; a test module names the driver:

    class TestShell(RuntimeSuite):
        name = "sh"
        def artifact(self, directory): return GREETING
"""

import pytest

# Before they are imported, so that a failed assertion in a suite shows its values.
pytest.register_assert_rewrite(
    "aether_core.testing.hooks",
    "aether_core.testing.providers",
    "aether_core.testing.runtimes",
    "aether_core.testing.strategies",
)

from aether_core.testing.hooks import HooksSuite  # noqa: E402
from aether_core.testing.providers import ProviderSuite  # noqa: E402
from aether_core.testing.runtimes import RuntimeSuite  # noqa: E402
from aether_core.testing.strategies import StrategySuite  # noqa: E402

__all__ = ["HooksSuite", "ProviderSuite", "RuntimeSuite", "StrategySuite"]
