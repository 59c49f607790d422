"""House rules, read from the syntax: layers, doors, sizes, names, docstrings, time.

A rule is a function from a module to its complaints. Each is also shown a module that breaks it.
"""

import ast
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = "aether_core"

#: From the lowest to the highest: a module imports its own layer and those before it.
#: A name stands for a module, or for a package and all in it.
LAYERS: dict[str, str] = {
    "words": "__init__ errors model clock",
    "judgement": "likelihood evidence judge",
    "extension": "keys drivers hookspecs installed worker listener",
    "configuration and state": (
        "config blueprint cluster_config settings contexts boot journal token certs store leases "
        "logs"
    ),
    "finding plugins": "plugins",
    "deciders": (
        "deployment lifecycle placement planning routing rollout traffic landscape envoy_routes "
        "envoy"
    ),
    "effects": (
        "process probe store_etcd client etcd serve ingress instances node artifacts reconcile "
        "statuses election runtimes providers"
    ),
    "processes": "leader api agent bootstrap",
    "command line": "cli",
    "for plugins' tests": "testing",
}
RANKS = {name: rank for rank, names in enumerate(LAYERS.values()) for name in names.split()}

#: Library: the modules (or packages) of ours that may import it.
DOORS: dict[str, str] = {
    "click": "cli testing.hooks",
    "cryptography": "certs",
    "envoy": "ingress",
    "fastapi": "api",
    "httpx": "client ingress store_etcd",
    "loguru": "*",  # Set up in logs.py, used anywhere.
    "pluggy": "hookspecs listener plugins",
    "psutil": "process providers.local",
    "pydantic": "config blueprint cluster_config settings model api cli.config",
    "pydantic_core": "config",
    "pydantic_settings": "settings",
    "pytest": "testing",  # For plugins' tests; nothing else imports it.
    "pytest_asyncio": "testing",
    "starlette": "api",
    "stevedore": "plugins",
    "uvicorn": "serve",
    "uvloop": "agent",
}

#: All of ours that a plugin may import: this list is the public interface.
FOR_PLUGINS = "hookspecs drivers model errors clock testing"

MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 500
SHORT_LINES = 3  # A function this short says by its name and types what it does.
BANNED_NAMES = "utils util helpers helper manager managers common base misc"
CLOCKS = r"time\.\w+|(datetime|date)\.(now|utcnow|today|fromtimestamp|utcfromtimestamp)"
RANDOM = r"random\.(?!Random\b)\w+"


@dataclass(frozen=True)
class Module:
    """A Python file of ours. `name` has dots; tests are `tests.unit.test_x`."""

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def is_core(self) -> bool:
        return self.name.partition(".")[0] == CORE

    @property
    def is_plugin(self) -> bool:
        return self.name.startswith("aether_") and not self.is_core

    @property
    def inside(self) -> str:
        """The name within the core."""
        return self.name.removeprefix(f"{CORE}.") if self.name != CORE else "__init__"

    @property
    def imports(self) -> Iterator[tuple[int, str]]:
        """Yield the line and the full name of everything imported, also inside functions."""
        for found in ast.walk(self.tree):
            if isinstance(found, ast.Import):
                yield from ((found.lineno, alias.name) for alias in found.names)
            elif isinstance(found, ast.ImportFrom):
                yield from ((found.lineno, f"{found.module}.{a.name}") for a in found.names)

    @cached_property
    def comments(self) -> dict[int, str]:
        tokens = tokenize.generate_tokens(StringIO(self.text).readline)
        return {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}


Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[Module], Iterator[str]]


def is_one_of(name: str, allowed: str) -> bool:
    """Return whether a dotted name is in the list, or inside a package that is."""
    return any(one == "*" or f"{name}.".startswith(f"{one}.") for one in allowed.split())


def rank(inside: str) -> int | None:
    return RANKS.get(inside.partition(".")[0])


def lower_never_imports_higher(module: Module) -> Iterator[str]:
    if not module.is_core:
        return
    mine = rank(module.inside)
    if mine is None:
        yield f"{module.name} stands in no layer: give it a place in LAYERS"
        return
    for line, name in module.imports:
        if name.startswith(f"{CORE}."):
            theirs = rank(name.removeprefix(f"{CORE}.")) or 0  # A name of the package itself.
            if theirs > mine:
                yield f"{module.name}:{line} imports {name} of a higher layer"


def each_library_has_its_doors(module: Module) -> Iterator[str]:
    if not module.is_core:
        return
    for line, name in module.imports:
        library = name.partition(".")[0]
        if library in DOORS and not is_one_of(module.inside, DOORS[library]):
            yield f"{module.name}:{line} imports {library}: its doors are {DOORS[library]}"
        elif library not in DOORS and library != CORE and not is_standard(library):
            yield f"{module.name}:{line} imports {library}, which has no door in DOORS"


def plugins_see_the_public_interface_only(module: Module) -> Iterator[str]:
    if not module.is_plugin:
        return
    for line, name in module.imports:
        if name.startswith(CORE) and not is_one_of(name.removeprefix(f"{CORE}."), FOR_PLUGINS):
            yield f"{module.name}:{line} imports {name}: plugins import {FOR_PLUGINS}"


def functions_fit_a_screen(module: Module) -> Iterator[str]:
    for found in ast.walk(module.tree):
        if isinstance(found, Function):
            lines = span(found)
            if lines > MAX_FUNCTION_LINES:
                yield f"{module.name}.{found.name} has {lines} lines"


def modules_are_short(module: Module) -> Iterator[str]:
    lines = module.text.count("\n")
    if lines > MAX_MODULE_LINES:
        yield f"{module.name} has {lines} lines"


def names_say_something(module: Module) -> Iterator[str]:
    for part in module.name.split("."):
        if part in BANNED_NAMES.split():
            yield f"{module.name} is called {part}"
    for found in module.tree.body:
        if isinstance(found, ast.ClassDef):
            last = re.findall("[A-Z][a-z]*", found.name)[-1:]
            if last and last[0].lower() in BANNED_NAMES.split():
                yield f"{module.name}.{found.name} is called {last[0]}"


def public_things_have_docstrings(module: Module) -> Iterator[str]:
    if not (module.is_core or module.is_plugin):
        return
    if module.tree.body and not ast.get_docstring(module.tree):
        yield f"{module.name} has no docstring"
    for owner, found in public(module.tree):
        # A test says by its name what it shows, also in the suites that plugins inherit.
        is_short = body_span(found) <= SHORT_LINES or found.name.startswith("test_")
        if not ast.get_docstring(found) and not is_short and not is_described(found, owner):
            yield f"{module.name}.{found.name} has no docstring"


def what_is_caught_blindly_says_why(module: Module) -> Iterator[str]:
    for found in ast.walk(module.tree):
        if isinstance(found, ast.ExceptHandler) and catches_everything(found):
            comment = module.comments.get(found.lineno, "")
            if len(re.sub(r"#|noqa: \S+", "", comment).split()) < 3:
                yield f"{module.name}:{found.lineno} catches everything and does not say why"


def time_comes_from_a_clock(module: Module) -> Iterator[str]:
    if module.name == f"{CORE}.clock" or not (module.is_core or module.is_plugin):
        return
    for found in ast.walk(module.tree):
        if isinstance(found, ast.Attribute):
            text = ast.unparse(found).removeprefix("datetime.")
            if re.fullmatch(CLOCKS, text) or re.fullmatch(RANDOM, text):
                yield f"{module.name}:{found.lineno} uses {text}"
    for line, name in module.imports:
        if re.fullmatch(f"{CLOCKS}|{RANDOM}", name):
            yield f"{module.name}:{line} imports {name}"


# What the rules ask


def is_standard(library: str) -> bool:
    return library in sys.stdlib_module_names


def span(found: ast.stmt) -> int:
    return (found.end_lineno or found.lineno) - found.lineno + 1


def body_span(found: Function | ast.ClassDef) -> int:
    return (found.end_lineno or found.lineno) - found.body[0].lineno + 1


def public(
    tree: ast.Module | ast.ClassDef,
) -> Iterator[tuple[ast.ClassDef | None, Function | ast.ClassDef]]:
    """Yield the public functions and classes of a module, methods with their class."""
    for found in tree.body:
        if isinstance(found, Function | ast.ClassDef) and not found.name.startswith("_"):
            yield (tree if isinstance(tree, ast.ClassDef) else None), found
            if isinstance(found, ast.ClassDef):
                yield from public(found)


def is_described(found: Function | ast.ClassDef, owner: ast.ClassDef | None) -> bool:
    """Return whether a method is described where it is specified: in a Protocol, or a library."""
    if owner is None:
        return False
    bases = {ast.unparse(base) for base in owner.bases}
    return found.name in PROTOCOL_METHODS or bool(bases & FOREIGN_BASES)


def catches_everything(handler: ast.ExceptHandler) -> bool:
    kinds = [handler.type] if handler.type else []
    if isinstance(handler.type, ast.Tuple):
        kinds = list(handler.type.elts)
    return not kinds or {ast.unparse(k) for k in kinds} & {"Exception", "BaseException"} != set()


# The rules, held against everything


def modules(*folders: str) -> list[Module]:
    """Return the Python files of ours below the folders."""
    found = []
    for folder in folders:
        start = ROOT / folder
        for path in sorted(start.rglob("*.py")):
            parts = (
                path.relative_to(ROOT if folder in (CORE, "tests") else start).with_suffix("").parts
            )
            if folder == "plugins":
                parts = parts[1:]  # The distribution's folder, then its package.
            found.append(Module(".".join(p for p in parts if p != "__init__"), path.read_text()))
    return found


MODULES = modules(CORE, "plugins", "tests", "examples")

PROTOCOL_METHODS = {
    method.name
    for module in MODULES
    for _, kind in public(module.tree)
    if isinstance(kind, ast.ClassDef) and any(ast.unparse(b) == "Protocol" for b in kind.bases)
    for method in kind.body
    if isinstance(method, Function)
}
FOREIGN_BASES = {"click.Group", "BaseSettings", "HttpToolsProtocol"}

RULES: list[Rule] = [
    lower_never_imports_higher,
    each_library_has_its_doors,
    plugins_see_the_public_interface_only,
    functions_fit_a_screen,
    modules_are_short,
    names_say_something,
    public_things_have_docstrings,
    what_is_caught_blindly_says_why,
    time_comes_from_a_clock,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Rule) -> None:
    assert [complaint for module in MODULES for complaint in rule(module)] == []


def test_all_of_ours_is_read() -> None:
    names = {module.name for module in MODULES}
    assert {CORE, f"{CORE}.cli.main", f"{CORE}.runtimes.jar", "aether_strategies"} <= names
    assert all(name in names for name in (__name__, "aether_strategies.immediate"))


def test_nothing_stands_in_the_tables_that_is_not_there() -> None:
    top = {module.inside.partition(".")[0] for module in MODULES if module.is_core}
    assert set(RANKS) == top
    assert sum(len(names.split()) for names in LAYERS.values()) == len(RANKS), "in two layers"
    used = {name.partition(".")[0] for m in MODULES if m.is_core for _, name in m.imports}
    assert set(DOORS) <= used
    for library, doors in DOORS.items():
        for door in doors.replace("*", "").split():
            users = [m for m in MODULES if m.is_core and is_one_of(m.inside, door)]
            imported = {n.partition(".")[0] for m in users for _, n in m.imports}
            assert library in imported, f"{door} no longer imports {library}"


DOCUMENTED = '"""Something."""\n'
LONG = "def run() -> None:\n" + "    pass\n" * 60


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (lower_never_imports_higher, "aether_core.model", "from aether_core import store"),
        (lower_never_imports_higher, "aether_core.store", "from aether_core.agent import run"),
        (lower_never_imports_higher, "aether_core.api.x", "import aether_core.cli.main"),
        (lower_never_imports_higher, "aether_core.model", "def f():\n from aether_core import cli"),
        (lower_never_imports_higher, "aether_core.unheard_of", ""),
        (each_library_has_its_doors, "aether_core.agent", "from httpx import get"),
        (each_library_has_its_doors, "aether_core.clientele", "import httpx"),
        (each_library_has_its_doors, "aether_core.agent", "import requests"),
        (plugins_see_the_public_interface_only, "aether_x.y", "from aether_core import store"),
        (plugins_see_the_public_interface_only, "aether_x", "from aether_core.store import Put"),
        (plugins_see_the_public_interface_only, "aether_x", "import aether_core.api.app"),
        (functions_fit_a_screen, "tests.x", LONG),
        (functions_fit_a_screen, "aether_core.x", LONG.replace("def", "async def", 1)),
        (modules_are_short, "aether_core.x", "\n" * 501),
        (names_say_something, "aether_core.utils", ""),
        (names_say_something, "aether_x.common.y", ""),
        (names_say_something, "aether_core.x", "class NodeManager: ..."),
        (public_things_have_docstrings, "aether_core.x", "A = 1"),
        (public_things_have_docstrings, "aether_core.x", DOCUMENTED + LONG),
        (
            public_things_have_docstrings,
            "aether_core.x",
            DOCUMENTED + "class A:\n" + " b = 1\n" * 4,
        ),
        (what_is_caught_blindly_says_why, "tests.x", "try: f()\nexcept Exception: g()"),
        (what_is_caught_blindly_says_why, "tests.x", "try: f()\nexcept: g()  # noqa: BLE001 bad"),
        (what_is_caught_blindly_says_why, "x", "try: f()\nexcept (OSError, BaseException): g()"),
        (time_comes_from_a_clock, "aether_core.x", "import time\ntime.monotonic()"),
        (time_comes_from_a_clock, "aether_core.x", "from time import sleep"),
        (time_comes_from_a_clock, "aether_core.x", "import datetime\ndatetime.datetime.now()"),
        (time_comes_from_a_clock, "aether_x", "from datetime import date\ndate.today()"),
        (time_comes_from_a_clock, "aether_x", "import random\nrandom.random()"),
    ],
)
def test_each_rule_can_fail(rule: Rule, name: str, text: str) -> None:
    assert list(rule(Module(name, text)))


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (
            lower_never_imports_higher,
            "aether_core.cli.x",
            "from aether_core import model, __version__",
        ),
        (each_library_has_its_doors, "aether_core.api.x", "import os\nimport fastapi"),
        (
            plugins_see_the_public_interface_only,
            "aether_x",
            "from aether_core.drivers import Stage",
        ),
        (functions_fit_a_screen, "tests.x", LONG.replace("    pass\n", "", 1)),
        (public_things_have_docstrings, "aether_core.x", DOCUMENTED + "def name(): return 1"),
        (
            what_is_caught_blindly_says_why,
            "x",
            "try: f()\nexcept Exception:  # It may not end us.\n g()",
        ),
        (time_comes_from_a_clock, "aether_core.x", "import random\nrandom.Random(5).random()"),
    ],
)
def test_each_rule_can_be_kept(rule: Rule, name: str, text: str) -> None:
    assert list(rule(Module(name, text))) == []
