"""The pages say what the code does: generated ones are current, named things exist."""

import ast
import importlib.util
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from aether_core import keys

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/*/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()
COMMANDS: list[tuple[str, click.Command]] = [("aether", generate.aether), *generate.commands()]


@pytest.mark.parametrize("path", generate.generated(), ids=lambda path: path.name)
def test_a_generated_page_is_what_the_code_says(path: Path) -> None:
    assert path.read_text() == generate.generated()[path], "run `make docs`"


def test_nothing_else_lies_among_the_generated_pages() -> None:
    found = {*(DOCS / "reference").iterdir(), *(DOCS / "schemas").iterdir()}
    assert found <= generate.generated().keys()


def test_every_part_of_a_page_is_one_that_is_generated() -> None:
    for page in PAGES:
        marked = re.findall(r"<!-- generated: (.*?) -->", page.read_text())
        assert not marked or page.name in generate.PAGES_WITH_PARTS, page


def test_a_stale_part_is_written_anew() -> None:
    stale = "<!-- generated: node states -->\nA --> B\n<!-- end -->"
    fresh = generate.with_parts(stale)
    assert "A --> B" not in fresh
    assert "JOINING --> ON_DUTY" in fresh


def test_every_test_that_a_page_names_exists() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = [name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())]
    assert len(named) >= 10
    assert [name for name in named if f"def {name}(" not in tests] == []


# Commands


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[words for words, _ in COMMANDS])
def test_every_command_and_option_says_what_it_is(words: str, command: click.Command) -> None:
    assert command.help, words
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{words} {option.opts[0]}"


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[words for words, _ in COMMANDS])
def test_no_two_options_share_a_spelling(words: str, command: click.Command) -> None:
    spellings = Counter(["-h", "--help"])
    for option in command.params:
        if isinstance(option, click.Option):
            spellings.update([*option.opts, *option.secondary_opts])
    assert [spelling for spelling, count in spellings.items() if count > 1] == [], words


# Names


def test_every_exit_code_has_a_meaning() -> None:
    codes = {kind.exit_code for _, kind in generate.error_kinds(generate.AetherError)}
    assert codes <= generate.EXIT_CODES.keys()
    readme = (ROOT / "README.md").read_text()
    assert [c for c in generate.EXIT_CODES if not re.search(rf"^\| {c} \|", readme, re.M)] == []


def test_every_variable_is_in_the_settings() -> None:
    documented = (DOCS / "reference" / "settings.md").read_text()
    for file in (ROOT / "aether_core").rglob("*.py"):
        for name in re.findall(r'"(AETHER_[A-Z_]*[A-Z]|AETHER_SECRET_)"', file.read_text()):
            assert f"`{name}" in documented, f"{name} of {file.name}"


def test_every_place_in_the_store_is_in_the_design() -> None:
    design = (DOCS / "design.md").read_text()
    places = {v for k, v in vars(keys).items() if k.isupper() and k != "ROOT"}
    places -= {keys.DESIRED, keys.OBSERVED}
    missing = [p for p in places if f"`{p.removeprefix(keys.ROOT)}" not in design]
    assert missing == []


def test_the_walk_names_what_exists() -> None:
    """Each `function()` is defined in the `file.py` that was named last before it."""
    walk = (DOCS / "read-in-10-minutes.md").read_text()
    names = re.findall(r"`([\w/]+\.py)`|`([\w.]+)\(\)`", walk)
    assert len(names) > 30, "the walk names few things: is it still written in this form?"
    file = None
    for path, function in names:
        if path:
            file = next((p for p in (ROOT / "aether_core" / path, ROOT / path) if p.exists()), None)
            assert file is not None, f"{path} does not exist"
        else:
            assert file is not None, f"{function}() stands before any file"
            assert function in set(_defined_in(file)), f"{function}() is not in {file.name}"


def test_the_design_names_what_exists() -> None:
    """`module.function`, `module.CONSTANT` and `file.py` of ours."""
    design = (DOCS / "design.md").read_text()
    for path in re.findall(r"`([\w/]+\.py)`", design):
        assert any((base / path).exists() for base in (ROOT, ROOT / "aether_core")), path
    named = re.findall(r"`(\w+)\.(\w+)`", design)
    ours = [(ROOT / "aether_core" / f"{module}.py", name) for module, name in named]
    ours = [(file, name) for file, name in ours if file.exists() and name not in ("py", "json")]
    assert len(ours) > 5
    for file, name in ours:
        assert re.search(rf"^(?:async )?(?:def |class )?{name}\b", file.read_text(), re.M), name


def test_links_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in LINK.findall(page.read_text())
        if not _leads_somewhere(page, target)
    ]
    assert broken == []


def test_a_word_of_the_glossary_has_one_meaning() -> None:
    words = re.findall(r"^\*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(), re.M)
    assert len(words) > 20
    assert [word for word, count in Counter(words).items() if count > 1] == []
    assert words == sorted(words, key=str.lower)


def _defined_in(file: Path) -> Iterator[str]:
    """Yield the functions and classes of a module, methods as `Class.method`."""
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        if isinstance(statement, ast.ClassDef):
            for inner in statement.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{statement.name}.{inner.name}"


def _leads_somewhere(page: Path, target: str) -> bool:
    if "://" in target:
        return True
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return False
    return not anchor or anchor in {_anchor(line) for line in _headings(file)}


def _headings(file: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", file.read_text(), re.M)


def _anchor(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")
