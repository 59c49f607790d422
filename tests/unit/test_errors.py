"""Errors: the tree in the docstring is the tree in the code, and crosses the API whole."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_core import errors
from aether_core.errors import (
    AetherError,
    ConfigError,
    Problem,
    from_problem_document,
    to_problem_document,
)


def tree(root: type[AetherError]) -> list[type[AetherError]]:
    """Return the classes of `errors.py` below `root`; other modules keep theirs to themselves."""
    below = [kind for child in root.__subclasses__() for kind in tree(child)]
    return [kind for kind in (root, *below) if kind.__module__ == errors.__name__]


KINDS = tree(AetherError)


def documented() -> dict[str, tuple[int, int]]:
    """Return what the docstring says: class to exit code and HTTP status, inherited if not said."""
    said: dict[str, tuple[int, int]] = {}
    parents: list[tuple[int, tuple[int, int]]] = []  # Indentation and figures of those around.
    for line in (errors.__doc__ or "").splitlines():
        names = re.findall(r"\b[A-Z][A-Za-z]+[a-z]\b", line.split("exit")[0])
        if not names or not re.match(r"^([│ ]*[├└]─ |AetherError)", line):
            continue
        indent = len(re.match(r"^[│├└─ ]*", line)[0])  # type: ignore[index]
        parents = [parent for parent in parents if parent[0] < indent]
        figures = re.search(r"exit (\d)\s+(?:http )?(\d+)", line)
        own = (int(figures[1]), int(figures[2])) if figures else parents[-1][1]
        said |= dict.fromkeys(re.findall(r"[A-Z][A-Za-z]+", " ".join(names)), own)
        children = line.partition("└─")[2] if figures else ""
        said |= dict.fromkeys(re.findall(r"[A-Z][A-Za-z]+", children), own)
        parents.append((indent, own))
    return said


def test_exit_codes_and_statuses_are_those_of_the_docstring() -> None:
    assert documented() == {kind.__name__: (kind.exit_code, kind.http_status) for kind in KINDS}


def test_every_class_says_what_it_means_in_one_sentence() -> None:
    for kind in KINDS:
        assert kind.__doc__, kind
        assert kind.__doc__.strip().endswith("."), kind


plain = st.none() | st.booleans() | st.integers() | st.text()
fields = st.dictionaries(
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(
        lambda name: name not in ("self", "message", "hint", "problems")
    ),
    plain | st.lists(plain),
    max_size=3,
)
problem = st.builds(Problem, st.text(), st.integers(0, 9999), st.text(), st.text(), st.text())


@pytest.mark.parametrize("kind", KINDS)
@given(message=st.text(), hint=st.text(), fields=fields, problems=st.lists(problem, max_size=3))
def test_every_class_survives_its_problem_document(
    kind: type[AetherError],
    message: str,
    hint: str,
    fields: dict[str, object],
    problems: list[Problem],
) -> None:
    extra = {"problems": tuple(problems)} if issubclass(kind, ConfigError) else {}
    error = kind(message, hint=hint, **extra, **fields)
    back = from_problem_document(json.loads(json.dumps(to_problem_document(error))))
    assert type(back) is kind
    assert vars(back) == vars(error)
    assert str(back) == message
    assert to_problem_document(error)["status"] == kind.http_status


@pytest.mark.parametrize(
    "document",
    [{}, {"type": "NotOfOurs", "title": "x"}, {"type": None}, {"title": None, "fields": None}],
)
def test_a_document_of_somebody_else_is_an_aether_error(document: dict[str, object]) -> None:
    assert type(from_problem_document(document)) is AetherError


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Problem("a.toml", 3, "b.c", "missing"), "a.toml:3: b.c: missing"),
        (Problem("a.toml", 0, "b.c", "missing"), "a.toml: b.c: missing"),
        (Problem("a.toml", 3, "", "not valid TOML"), "a.toml:3: not valid TOML"),
    ],
)
def test_a_problem_in_one_line(found: Problem, expected: str) -> None:
    assert str(found) == expected
