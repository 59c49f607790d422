"""Plugins that are ill, through the command line: the tool works, and says which one and why.

They are all installed at once: none may hide another. Two of them hang, five seconds each.
"""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.contract.shelf import Shelf

HOOKS = "from aether_core.hookspecs import hookimpl\napi_version = 1\n\n@hookimpl\n"
DRIVER = "class Driver:\n    api_version = 1\n    suffix = '.ill'\n"

NEVER_BACK = "it did not come back within 5 s"
ILL_HOOKS = {
    "never finishes its import": (
        "import threading\nthreading.Event().wait()",
        "broken",
        NEVER_BACK,
    ),
    "cannot be imported": ("import no_such_module", "broken", "No module named 'no_such_module'"),
    "is not Python": ("def", "broken", "SyntaxError"),
    "exits on import": ("import sys; sys.exit(0)", "broken", "raised SystemExit(0)"),
    "says no api_version": ("x = 1", "broken", "says no api_version"),
    "is of another API": ("api_version = 99", "broken", "written for API 99"),
    "has no hooks": ("api_version = 1", "broken", "has no hooks"),
    "misspells a hook": (
        HOOKS + "def aether_comands(): return {}",
        "broken",
        "unknown hook 'aether_comands'",
    ),
    "forgets the mark": (
        HOOKS + "def aether_commands(): return {}\n\ndef aether_event(event): pass",
        "broken",
        "'aether_event' lacks @hookimpl",
    ),
    "is asynchronous": (
        HOOKS + "async def aether_commands(): return {}",
        "broken",
        "not a plain function",
    ),
    "takes what there is not": (HOOKS + "def aether_event(weather): pass", "broken", "weather"),
    "raises in a hook": (HOOKS + "def aether_commands(): 1 / 0", "broken", "ZeroDivisionError"),
    "answers nonsense": (HOOKS + "def aether_commands(): return 7", "broken", "TypeError"),
    "claims a command of ours": (
        HOOKS + "def aether_commands(): return {'deploy': 'os:getcwd'}",
        "clash",
        "'deploy' is already provided by aether itself",
    ),
    "adds a command that is not there": (
        HOOKS + "def aether_commands(): return {'ill': 'no_such_module:ill'}",
        "broken",
        "no_such_module",
    ),
    "claims a table of ours": (
        HOOKS + "def aether_config_tables(): return {'cluster': 'os:getcwd'}",
        "clash",
        "'cluster' is already provided by aether itself",
    ),
    "adds a table that is no model": (
        HOOKS + "def aether_config_tables(): return {'ill': 'os:getcwd'}",
        "broken",
        "no pydantic model",
    ),
}
ILL_DRIVERS = {
    "never finishes its import": ("while True: pass", "broken", NEVER_BACK),
    "cannot be imported": ("import no_such_module", "broken", "No module named 'no_such_module'"),
    "exits on import": ("import sys; sys.exit(0)", "broken", "SystemExit"),
    "is of another API": (DRIVER.replace("1", "99"), "broken", "written for API 99"),
    "lacks the class": ("", "broken", "has no attribute 'Driver'"),
    "is no class": ("Driver = 7", "broken", "is no class"),
    "has the name of a built-in": (DRIVER, "clash", "provided by aether-cluster and driver-"),
}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """A shelf with every ill plugin of the tables."""
    shelf = Shelf(tmp_path_factory.mktemp("hospital"))
    for illness, (source, _, _) in ILL_HOOKS.items():
        shelf.add(_name("hook", illness), source)
    for illness, (source, state, _) in ILL_DRIVERS.items():
        name = "jar" if state == "clash" else illness.replace(" ", "_")
        shelf.add(_name("driver", illness), source, group="aether.runtimes", **{name: "Driver"})
    return shelf


@pytest.fixture(scope="module")
def listed(hospital: Shelf) -> dict[str, dict[str, Any]]:
    """What `aether plugin list` says, by distribution."""
    return {line["distribution"]: line for line in hospital.lines()}


@pytest.fixture(scope="module")
def helped(hospital: Shelf) -> "subprocess.CompletedProcess[str]":
    """What `aether --help` says."""
    return hospital.aether("--help")


@pytest.mark.parametrize("illness", ILL_HOOKS)
def test_a_plugin_that(illness: str, listed: dict[str, dict[str, Any]]) -> None:
    _, state, why = ILL_HOOKS[illness]
    line = listed[_name("hook", illness)]
    assert line["state"] == state
    assert why in line["why"]


@pytest.mark.parametrize("illness", ILL_DRIVERS)
def test_a_driver_that(illness: str, listed: dict[str, dict[str, Any]]) -> None:
    _, state, why = ILL_DRIVERS[illness]
    line = listed[_name("driver", illness)]
    assert line["state"] == state
    assert why in line["why"]


def test_help_is_given_beside_them_all(helped: "subprocess.CompletedProcess[str]") -> None:
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Without hook_answers_nonsense (broken)," in " ".join(helped.stdout.split())
    assert helped.stdout.count("\n  deploy ") == 1


def test_a_healthy_plugin_is_found_beside_them_all(listed: dict[str, dict[str, Any]]) -> None:
    assert listed["aether-strategies"]["state"] == "ok"


def test_a_disabled_plugin_costs_nothing(shelf: Shelf) -> None:
    shelf.add("ill", ILL_HOOKS["never finishes its import"][0])
    (line,) = shelf.lines(AETHER_DISABLE_PLUGINS="ill", only="ill")
    assert line["state"] == "disabled"


def test_two_distributions_with_the_same_driver_are_both_named(shelf: Shelf) -> None:
    for distribution in ("one", "two"):
        shelf.add(distribution, DRIVER, group="aether.runtimes", ill="Driver")
    for distribution in ("one", "two"):
        (line,) = shelf.lines(only=distribution)
        assert line["state"] == "clash"
        assert "one and two" in line["why"]


def test_entry_points_that_nobody_can_read_are_blamed_on_their_distribution(shelf: Shelf) -> None:
    shelf.add("ill", "")
    (shelf.directory / "ill-1.0.dist-info" / "entry_points.txt").write_text("[aether]\nnonsense\n")
    assert shelf.aether("--help").returncode == 0
    listed = shelf.aether("plugin", "list")
    assert listed.returncode == 3
    assert "the entry points of 'ill' cannot be read" in listed.stderr


def test_a_command_whose_module_fails_is_the_plugins_failure(shelf: Shelf) -> None:
    shelf.add("ill", HOOKS + "def aether_commands(): return {'ill': 'worse:ill'}")
    (shelf.directory / "worse.py").write_text("1 / 0")
    ran = shelf.aether("ill")
    assert ran.returncode == 3
    assert ran.stderr.startswith("error: 'worse:ill' cannot be loaded: ZeroDivisionError")


def test_a_claimed_command_stays_ours(shelf: Shelf) -> None:
    shelf.add("ill", ILL_HOOKS["claims a command of ours"][0])
    assert "Deploy the blueprint in FILE" in shelf.aether("deploy", "--help").stdout


def _name(kind: str, illness: str) -> str:
    return f"{kind}-{illness.replace(' ', '-')}"
