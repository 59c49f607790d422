"""Bearer tokens: shown once, kept as a hash, compared without telling how close a guess was."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core.model import Role, encode
from aether_core.token import is_secret_of, new_token, record_of, split_token
from tests.unit.clocks import START


def test_a_token_opens_its_own_record_only() -> None:
    text, record = new_token("ci", Role.OPERATOR, now=START)
    other_text, other = new_token("ci", Role.OPERATOR, now=START)
    assert re.fullmatch(r"aet_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", text)
    identity, secret = split_token(text)
    assert (identity, record.role, record.created_at) == (record.id, Role.OPERATOR, START)
    assert is_secret_of(record, secret)
    assert not is_secret_of(other, secret)
    assert not is_secret_of(record, split_token(other_text)[1])
    assert not is_secret_of(None, secret)
    assert not is_secret_of(record, "")


def test_the_record_keeps_no_secret_and_can_be_made_again() -> None:
    text, record = new_token("ci", Role.ADMIN, now=START)
    assert split_token(text)[1] not in encode(record).decode()
    assert record_of(text, "ci", Role.ADMIN, now=START) == record


@given(text=st.text() | st.text().map("aet_".__add__))
def test_what_is_no_token_opens_nothing(text: str) -> None:
    _, record = new_token("ci", Role.ADMIN, now=START)
    assert not is_secret_of(record, split_token(text)[1])
    assert not is_secret_of(None, split_token(text)[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aet_1a2b_s_e-c", ("1a2b", "s_e-c")),
        ("aet_1a2b", ("1a2b", "")),
        ("tea_1a2b_secret", ("", "")),
        ("", ("", "")),
    ],
)
def test_split(text: str, expected: tuple[str, str]) -> None:
    assert split_token(text) == expected


def test_the_hash_of_nothing_is_no_way_in() -> None:
    """A record that does not exist is compared with zeros: no secret hashes to them."""
    assert not is_secret_of(None, "0" * 64)
