"""Hooks that object, raise, hang or listen: what their caller sees, and what goes on meanwhile."""

import asyncio
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

from aether_core.errors import DriverBroken, HookFailed, Refused
from aether_core.hookspecs import DeploymentMoved
from aether_core.plugins import Hooks, build_driver, load_driver
from tests.contract.shelf import Shelf

HOOKS = "import threading\nfrom aether_core.hookspecs import hookimpl\napi_version = 1\n"
EVENT = DeploymentMoved("shop-1", "shop", "PENDING", "DEPLOYING", "")
LISTENS = """
    heard, arrived = [], threading.Event()
    @hookimpl
    def aether_event(event):
        heard.append(event)
        arrived.set()
"""
HANGS = """
    forever = threading.Event()
    @hookimpl
    def aether_event(event): forever.wait()
"""
LIMIT_S, BOUND_S = 0.3, 30.0

_numbers = count()


class Plugins:
    """Makes plugins whose modules nobody has imported before."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def add(self, role: str, source: str) -> str:
        """Return the name of the plugin, its distribution and its module."""
        name = f"{role}_{next(_numbers)}"
        self._shelf.add(name, HOOKS + dedent(source))
        return name


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield Plugins(Shelf(tmp_path))
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and name[-1].isdigit():
            del sys.modules[name]


def module(name: str) -> ModuleType:
    return sys.modules[name]


def state(hooks: Hooks, name: str) -> tuple[str, str]:
    (line,) = (plugin for plugin in hooks.plugins if plugin.name == name)
    return line.state, line.why


async def test_an_objection_refuses_and_says_who(plugins: Plugins) -> None:
    name = plugins.add(
        "strict",
        """
        @hookimpl
        def aether_admit_deployment(plan): return f"no {plan['blueprint']} today"
        """,
    )
    with pytest.raises(Refused, match=f"'{name}' refuses the deployment: no shop today"):
        await Hooks().admit_deployment({"blueprint": "shop"})


async def test_a_guard_that_raises_lets_nobody_through(plugins: Plugins) -> None:
    name = plugins.add(
        "ill",
        """
        @hookimpl
        def aether_admit_deployment(plan): return plan["no such key"]
        """,
    )
    hooks = Hooks()
    with pytest.raises(HookFailed, match=name):
        await hooks.admit_deployment({})
    assert state(hooks, name) == ("broken", "KeyError: 'no such key'")


async def test_a_guard_that_hangs_lets_nobody_through_and_stops_nothing(plugins: Plugins) -> None:
    name = plugins.add(
        "ill",
        """
        @hookimpl
        def aether_admit_deployment(): threading.Event().wait()
        """,
    )
    hooks = Hooks(limit_s=LIMIT_S)
    asked = asyncio.ensure_future(hooks.admit_deployment({}))
    turns = 0
    while not asked.done():
        turns += 1
        await asyncio.sleep(0)
    with pytest.raises(HookFailed, match=f"'{name}' failed.*did not come back within 0.3 s"):
        await asked
    assert turns > 100, "the loop stood still while the plugin was asked"
    with pytest.raises(HookFailed):
        await hooks.admit_deployment({})


async def test_a_table_reaches_the_hook_as_its_model(plugins: Plugins) -> None:
    source = """
        from pydantic import BaseModel
        class Rules(BaseModel, strict=True):
            banned: tuple[str, ...]
        @hookimpl
        def aether_config_tables(): return {"%s": f"{__name__}:Rules"}
        @hookimpl
        def aether_admit_deployment(plan, tables):
            rules = tables.get("%s")
            return "banned" if rules and plan["blueprint"] in rules.banned else None
    """
    plugins.add("rules", source % ("rules", "rules"))
    plugins.add("other", source % ("other", "rules"))  # Asks for a table that is not its own.
    await Hooks().admit_deployment({"blueprint": "shop"})
    await Hooks(tables={"other": {"banned": ["shop"]}}).admit_deployment({"blueprint": "shop"})
    hooks = Hooks(tables={"rules": {"banned": ["shop"]}})
    await hooks.admit_deployment({"blueprint": "web"})
    with pytest.raises(Refused, match="'rules_"):
        await hooks.admit_deployment({"blueprint": "shop"})
    with pytest.raises(HookFailed, match="banned"):
        await Hooks(tables={"rules": {"banned": 7}}).admit_deployment({"blueprint": "shop"})


@pytest.mark.parametrize("ill", [HANGS, "@hookimpl\ndef aether_event(event): 1 / 0"])
def test_an_ill_listener_keeps_nobody_else_from_hearing(plugins: Plugins, ill: str) -> None:
    before, well, after = plugins.add("a", ill), plugins.add("b", LISTENS), plugins.add("c", ill)
    hooks = Hooks()
    hooks.event(EVENT)
    assert module(well).arrived.wait(BOUND_S)
    assert module(well).heard == [EVENT]
    assert {before, well, after} <= {plugin.name for plugin in hooks.plugins}


def test_a_listener_that_raises_is_told_by_name(plugins: Plugins) -> None:
    name = plugins.add(
        "ill",
        """
        arrived, turns = threading.Event(), []
        @hookimpl
        def aether_event(event):
            turns.append(event)
            if len(turns) == 1:
                raise ValueError("too early")
            arrived.set()
        """,
    )
    hooks = Hooks()
    hooks.event(EVENT)
    hooks.event(EVENT)  # One failure does not make it deaf.
    assert module(name).arrived.wait(BOUND_S)
    assert state(hooks, name) == ("broken", "ValueError: too early")


def test_a_listener_that_hangs_is_told_by_name_and_no_longer_fed(plugins: Plugins) -> None:
    name = plugins.add("ill", HANGS)
    hooks = Hooks()
    for _ in range(1002):  # One that it hangs in, a thousand that wait, one too many.
        hooks.event(EVENT)
    assert state(hooks, name) == ("broken", "it hangs: 1000 calls wait for it")
    module(name).forever.set()


def test_events_are_heard_in_order(plugins: Plugins) -> None:
    name = plugins.add("well", LISTENS.replace("arrived.set()", "len(heard) < 50 or arrived.set()"))
    hooks, events = Hooks(), [DeploymentMoved(str(n), "shop", "", "", "") for n in range(50)]
    for event in events:
        hooks.event(event)
    assert module(name).arrived.wait(BOUND_S)
    assert module(name).heard == events


def test_what_two_offer_stays_with_the_first_and_is_blamed_on_the_second(plugins: Plugins) -> None:
    source = "@hookimpl\ndef aether_commands(): return {'twice': 'somewhere.else:command'}"
    first, second = plugins.add("a", source), plugins.add("b", source)
    hooks = Hooks()
    assert hooks.commands == {"twice": "somewhere.else:command"}
    assert state(hooks, first) == ("ok", "")
    assert state(hooks, second) == ("clash", f"'twice' is already provided by '{first}'")


def test_two_plugins_of_the_same_name_both_work(plugins: Plugins, tmp_path: Path) -> None:
    one, two = plugins.add("one", LISTENS), plugins.add("two", LISTENS)
    for name in (one, two):
        points = tmp_path / f"{name}-1.0.dist-info" / "entry_points.txt"
        points.write_text(f"[aether]\nsame = {name}\n")
    Hooks().event(EVENT)
    assert module(one).arrived.wait(BOUND_S)
    assert module(two).arrived.wait(BOUND_S)


def test_a_disabled_plugin_is_not_even_imported(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = plugins.add("quiet", LISTENS)
    monkeypatch.setenv("AETHER_DISABLE_PLUGINS", f"another,{name}")
    assert state(Hooks(), name)[0] == "disabled"
    assert name not in sys.modules


DRIVERS = """
    class Falsy:
        api_version = 1
        def __len__(self): return 0
    class Failing:
        api_version = 1
        def __init__(self): 1 / 0
"""


def test_a_driver_whose_instance_is_falsy_is_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    shelf = Shelf(tmp_path)
    shelf.add("odd", dedent(DRIVERS), group="aether.runtimes", odd_one="Falsy", failing="Failing")
    kind = load_driver("aether.runtimes", "odd-one")
    assert isinstance(build_driver("aether.runtimes", "odd_one"), kind)
    with pytest.raises(DriverBroken, match="'failing' failed: ZeroDivisionError"):
        build_driver("aether.runtimes", "failing")
