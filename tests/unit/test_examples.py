"""Every key of the examples, broken in every way: an error that names it, or another value."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from aether_core.blueprint import Blueprint
from aether_core.cluster_config import ClusterConfig
from aether_core.config import read_toml, validate
from aether_core.errors import ConfigError, Problem

EXAMPLES = Path(__file__).parents[2] / "examples"


def leaves(values: Mapping[str, Any], keys: tuple[str | int, ...] = ()) -> list[Any]:
    """Return the keys and value of everything in the document that is no table."""
    found: list[Any] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += leaves(value, (*keys, key))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                found += leaves(item, (*keys, key, index))
        else:
            found.append(((*keys, key), value))
    return found


def changed(values: Any, keys: tuple[Any, ...], value: object, *, name: object = None) -> Any:
    """Return the document with the value at `keys` replaced, or with the key called `name`."""
    head, rest = keys[0], keys[1:]
    if isinstance(values, list):
        return [
            changed(v, rest, value, name=name) if i == head else v for i, v in enumerate(values)
        ]
    if rest:
        return {**values, head: changed(values[head], rest, value, name=name)}
    kept = {key: item for key, item in values.items() if key != head}
    return {**kept, name or head: value}


EXAMPLE_FILES = [
    (EXAMPLES / "local.toml", ClusterConfig),
    *((path, Blueprint) for path in sorted((EXAMPLES / "shop").glob("blueprint*.toml"))),
]
EXAMPLE_KEYS = [
    pytest.param(path, model, keys, value, id=f"{path.name}:{'.'.join(map(str, keys))}")
    for path, model in EXAMPLE_FILES
    for keys, value in leaves(tomllib.loads(path.read_text()))
]
WRONG_TYPES = ({"x": 1}, [1], True, 7.5, -1, "\x00 no")


@pytest.mark.parametrize(("path", "model", "keys", "value"), EXAMPLE_KEYS)
def test_no_key_of_an_example_is_ignored(
    path: Path, model: type[BaseModel], keys: tuple[str | int, ...], value: object
) -> None:
    document = read_toml(path)
    right = validate(document, model)

    def outcome(values: dict[str, Any]) -> BaseModel | list[Problem]:
        try:
            return validate(type(document)(document.file, values, document.lines), model)
        except ConfigError as error:
            return list(error.problems)

    for wrong in WRONG_TYPES:
        if wrong == value:
            continue
        result = outcome(changed(document.values, keys, wrong))
        if isinstance(result, list):
            assert {problem.line for problem in result} == {document.line_of(keys)}
        else:
            assert result != right, f"{keys} = {wrong!r} changed nothing"
    misspelt = outcome(changed(document.values, keys, value, name=f"{keys[-1]}x"))
    assert isinstance(misspelt, list)
    assert any(problem.hint == f"did you mean '{keys[-1]}'?" for problem in misspelt)


def test_every_value_of_an_example_stands_on_the_line_it_is_said_to(tmp_path: Path) -> None:
    for path, _ in EXAMPLE_FILES:
        document, lines = read_toml(path), path.read_text().splitlines()
        for keys, _ in leaves(document.values):
            assert str(keys[-1]) in lines[document.line_of(keys) - 1]
