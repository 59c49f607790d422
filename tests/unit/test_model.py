"""The words: every value survives the store; a fleet's name says exactly what runs."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core import model
from aether_core.boot import Boot, Peers
from aether_core.contexts import Context
from aether_core.deployment import Asking, Move
from aether_core.errors import IntegrityError
from aether_core.instances import Kept
from aether_core.model import (
    FleetId,
    HealthCheck,
    InstanceSpec,
    Resources,
    SliceRecord,
    decode,
    encode,
    fleet_id,
    slice_of,
    to_plain,
)
from aether_core.process import Child

st.register_type_strategy(datetime, st.datetimes(timezones=st.just(UTC)))
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))

WORDS: list[Any] = [
    kind for kind in vars(model).values() if isinstance(kind, type) and is_dataclass(kind)
]
KEPT: list[Any] = [*WORDS, Boot, Peers, Context, Kept, Child, Asking, Move]


def values_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Return values of a kind, with JSON where it holds what is somebody else's."""
    hints = {name: hint for name, hint in get_type_hints(kind).items() if "Any" in str(hint)}
    keys_and_values = st.dictionaries(st.text(), st.integers() | st.text() | st.booleans())
    return st.builds(kind, **{f.name: keys_and_values for f in fields(kind) if f.name in hints})


@pytest.mark.parametrize("kind", KEPT, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_value_survives_encode_and_decode(kind: type[Any], data: st.DataObject) -> None:
    value = data.draw(values_of(kind))
    written = encode(value)
    assert decode(kind, written) == value
    assert encode(decode(kind, written)) == written, "one text per value: revisions compare texts"


@pytest.mark.parametrize("kind", KEPT, ids=lambda kind: kind.__name__)
def test_every_value_is_frozen(kind: type[Any]) -> None:
    assert kind.__dataclass_params__.frozen


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"5", b'{"name": 5}', b"\xff"])
def test_what_is_not_the_value_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="stored SliceRecord is not readable"):
        decode(SliceRecord, data)


def test_dictionaries_are_written_in_one_order() -> None:
    one, two = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert encode(replace(SPEC, env={"A": "1", "B": "2"})) == encode(
        replace(SPEC, env={"B": "2", "A": "1"})
    )
    assert to_plain(one) == to_plain(two) == {"a": 1, "b": 2}


SPEC = InstanceSpec("web", "1.0.0", "web:1.0.0", "0" * 64, "pyz")

#: Another value for every field: each of them changes what runs.
OTHER: Mapping[str, object] = {
    "slice": "api",
    "version": "1.0.1",
    "artifact": "other:1.0.0",
    "sha256": "1" * 64,
    "kind": "jar",
    "entry": "run",
    "env": {"A": "1"},
    "resources": Resources(0.5),
    "health": HealthCheck("/health"),
    "drain_s": 1.0,
    "grace_s": 1.0,
}


def test_any_change_of_what_runs_is_another_fleet() -> None:
    assert set(OTHER) == {field.name for field in fields(InstanceSpec)}
    ids = {fleet_id(replace(SPEC, **{name: value})) for name, value in OTHER.items()}  # type: ignore[arg-type]
    assert len(ids | {fleet_id(SPEC)}) == len(OTHER) + 1
    assert fleet_id(dataclasses.replace(SPEC)) == fleet_id(SPEC)


def test_the_name_of_a_fleet() -> None:
    assert re.fullmatch(r"web@1\.0\.0-[0-9a-f]{6}", fleet_id(SPEC))
    assert slice_of(fleet_id(SPEC)) == "web"
    assert slice_of(FleetId("my-service@1.0.0@x-3fa9c1")) == "my-service"
