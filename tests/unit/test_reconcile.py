"""What to begin and what to end on a node: carried out, nothing is left to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core.model import Assignment, FleetId, InstanceId, NodeId
from aether_core.reconcile import Difference, difference


def assigned(*names: str, fleet: str = "web@1") -> list[Assignment]:
    return [Assignment(InstanceId(name), NodeId("n1"), FleetId(fleet)) for name in names]


def shown(found: Difference) -> list[str]:
    return [f"+{a.id}" for a in found.start] + [f"-{name}" for name in found.drain]


@pytest.mark.parametrize(
    ("desired", "running", "expected"),
    [
        ("", "", ""),
        ("web-1 api-1", "", "+api-1 +web-1"),
        ("", "web-1 api-1", "-api-1 -web-1"),
        ("web-1 web-2", "web-1 web-2", ""),
        ("web-2 web-3", "web-1 web-2", "+web-3 -web-1"),
        ("web-1 web-1", "", "+web-1"),
    ],
)
def test_table(desired: str, running: str, expected: str) -> None:
    present = map(InstanceId, running.split())
    assert shown(difference(assigned(*desired.split()), present)) == expected.split()


names = st.sets(st.from_regex(r"(web|api)-[1-9]", fullmatch=True))


@given(desired=names, running=names)
def test_carried_out_it_leaves_none(desired: set[str], running: set[str]) -> None:
    wanted = assigned(*desired)
    first = difference(wanted, map(InstanceId, running))
    assert not {a.id for a in first.start} & set(first.drain)
    after = (running | {a.id for a in first.start}) - set(first.drain)
    assert after == desired
    assert shown(difference(wanted, map(InstanceId, after))) == []
