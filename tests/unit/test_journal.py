"""The bootstrap's journal: every line that was written whole can be read."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core.journal import Journal, Line
from tests.unit.clocks import HandClock

AT = "2026-01-02T03:04:05.000+00:00"


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", HandClock())
    assert journal.lines() == []
    journal.write("intent", "machine node-1")
    journal.write("done", "machine node-1 is 'x'\nand \N{SNOWMAN}")
    expected = [
        Line("intent", "machine node-1", AT),
        Line("done", "machine node-1 is 'x'\nand \N{SNOWMAN}", AT),
    ]
    assert journal.lines() == expected
    assert Journal(tmp_path / "journal", HandClock()).lines() == expected


@given(cut=st.integers(1, 80), after=st.integers(0, 2))
def test_a_torn_line_costs_itself_only(
    tmp_path_factory: pytest.TempPathFactory, cut: int, after: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = Journal(path, HandClock())
    journal.write("intent", "first")
    whole = path.stat().st_size
    journal.write("intent", "torn")
    path.write_bytes(path.read_bytes()[: max(whole, path.stat().st_size - cut)])
    is_torn = path.stat().st_size < 2 * whole - 2  # Less than its newline is missing.
    for _ in range(after):
        journal.write("intent", "later")
    expected = ["first", *([] if is_torn else ["torn"]), *["later"] * after]
    assert [line.about for line in journal.lines()] == expected


@pytest.mark.parametrize(
    "rubbish", [b"\0" * 50, b"\xff\xfe", b"5\n", b"{}\n", b'{"event": "x"}', b"\n\n"]
)
def test_rubbish_is_left_out(tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(rubbish)
    journal = Journal(path, HandClock())
    journal.write("done", "later")
    assert [line.about for line in journal.lines()] == ["later"]
    assert json.loads(path.read_bytes().splitlines()[-1])["about"] == "later"
