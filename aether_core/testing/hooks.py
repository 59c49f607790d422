"""What every plugin with hooks must do."""

from typing import ClassVar

import click

from aether_core.hookspecs import GROUP
from aether_core.installed import Plugin, entry_points_of, import_attribute, line_of
from aether_core.plugins import Hooks


class HooksSuite:
    """Inherit and set `name`: the entry point in the group `aether`."""

    name: ClassVar[str]

    def test_it_loads_and_answers(self) -> None:
        assert self._line(self._hooks()).why == ""

    def test_its_commands_are_commands(self) -> None:
        for path in self._hooks().commands.values():
            assert isinstance(import_attribute(path), click.Command), path

    def test_its_tables_describe_themselves_to_editors(self) -> None:
        for name, model in self._hooks().config_tables.items():
            assert model.model_json_schema()["type"] == "object", name

    def _hooks(self) -> Hooks:
        points = [point for point in entry_points_of(GROUP) if point.name == self.name]
        assert points, f"no installed distribution has '{self.name}' in the group '{GROUP}'"
        assert len({line_of(point).distribution for point in points}) == 1
        hooks = Hooks(points)
        hooks.check()
        return hooks

    def _line(self, hooks: Hooks) -> Plugin:
        (line,) = hooks.plugins
        return line
