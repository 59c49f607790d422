"""The examples of strategies: what people copy must be accepted, and be the shop."""

from pathlib import Path

import pytest

from aether_core.blueprint import read_blueprint
from aether_core.drivers import Strategy
from aether_core.plugins import load_driver
from tests.unit.fleets import change

EXAMPLES = Path(__file__).parents[2] / "examples"
SHOP = read_blueprint(EXAMPLES / "shop" / "blueprint-1.1.0.toml")
FILES = sorted((EXAMPLES / "strategies").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_is_the_shop_with_a_strategy(file: Path) -> None:
    found = read_blueprint(file)
    driver: Strategy = load_driver("aether.strategies", found.strategy.kind)()
    changes = tuple(change(piece.instances, name=piece.name) for piece in found.slices)
    assert driver.stages(changes, found.strategy.options)
    assert [piece.artifact for piece in found.slices] == [p.artifact for p in SHOP.slices]
    assert file.stem in (EXAMPLES / "strategies" / "walk").read_text()


def test_every_strategy_that_takes_its_time_has_an_example() -> None:
    kinds = {read_blueprint(file).strategy.kind for file in FILES}
    assert kinds == {"rolling", "canary", "blue_green", "ab_test"}
