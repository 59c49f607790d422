"""The shape of the command line: help, options, output for people and for machines."""

import ast
import inspect
import json
import os
import pty
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import click
import pytest

from aether_core.cli.main import Session, aether
from tests.contract.answering import Answer
from tests.contract.cluster_answers import ASKING, healthy_but
from tests.contract.conftest import Desk

HEAVY = ("numpy", "onnxruntime", "git", "grpc", "fastapi", "starlette", "uvicorn", "httpx")
#: What never speaks JSON of ours: a node, and what prints a JSON schema.
WITHOUT_JSON = {"node run", "config schema"}


def commands(
    group: click.Group = aether, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Yield every command with the words that name it, groups too."""
    context = click.Context(group, obj=Session())
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands())
LEAVES = {name: one for name, one in COMMANDS.items() if not isinstance(one, click.Group)}


def names_of(command: click.Command) -> set[str]:
    return {
        word
        for parameter in command.params
        for word in [*parameter.opts, *parameter.secondary_opts]
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(desk: Desk, name: str) -> None:
    code, out, err = desk.types(*name.split(), "--help")
    assert (code, err) == (0, "")
    assert "Usage: aether" in out
    assert (COMMANDS[name].help or "").strip().endswith((".", "status"))


@pytest.mark.parametrize("name", COMMANDS)
def test_no_two_options_share_a_name(name: str) -> None:
    context = click.Context(COMMANDS[name], help_option_names=["-h", "--help"])
    options = [one for one in COMMANDS[name].get_params(context) if isinstance(one, click.Option)]
    words = [word for option in options for word in [*option.opts, *option.secondary_opts]]
    assert sorted(words) == sorted(set(words))


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_is_used(name: str) -> None:
    callback = LEAVES[name].callback
    assert callback is not None
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(callback))))
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    declared = {one.name for one in LEAVES[name].params if one.expose_value}
    assert declared <= read


def test_every_command_speaks_json() -> None:
    assert {n for n, one in LEAVES.items() if "--json" not in names_of(one)} == WITHOUT_JSON


def test_every_command_that_asks_is_tested() -> None:
    """`ASKING` is what the failures are tried on: a new command must be there."""
    local = {"config check", "context list", "context use", "context show", "context remove"}
    local |= {"plugin list", "cluster list", "cluster bootstrap", "cluster destroy", *WITHOUT_JSON}
    asking = {name.split(" --")[0].replace("deploy file", "deploy") for name in ASKING}
    assert {name.replace("deploy file", "deploy") for name in LEAVES} - local == asking


@pytest.mark.parametrize("command", ASKING)
def test_success_is_0_and_one_json_document_or_one_a_line(desk: Desk, command: str) -> None:
    words = [word.format(desk.files) for word in ASKING[command]]
    desk.script = healthy_but({})
    code, out, err = desk.types(*words)
    assert code == 0, err
    assert out + err
    assert "\x1b" not in out + err
    code, out, err = desk.types(*words, "--json")
    assert (code, err) == (0, "")
    objects = [json.loads(line) for line in out.splitlines()]
    assert objects[0]["schema"] == "aether/v1"
    assert all("schema" not in one for one in objects[1:])
    assert all(one["kind"].isidentifier() for one in objects)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["context", "list"], "contexts"),
        (["context", "show"], "context"),
        (["context", "use", "test"], "context"),
        (["context", "remove", "test"], "removed"),
        (["config", "check", "{}/blueprint.toml"], "checked"),
        (["plugin", "list"], "plugins"),
        (["cluster", "list"], "clusters"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
def test_what_asks_nobody_speaks_json_too(desk: Desk, words: list[str], kind: str) -> None:
    code, out, err = desk.types(*(word.format(desk.files) for word in words), "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["schema"], told["kind"]) == ("aether/v1", kind)
    assert desk.script.asked == []


def test_an_artifact_document_keeps_the_artifacts_kind(desk: Desk) -> None:
    desk.script = healthy_but({})
    _, out, _ = desk.types("artifact", "show", "web:1.0.0", "--json")
    told = json.loads(out)
    assert (told["kind"], told["artifact"]["kind"]) == ("artifact", "pyz")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["deploy", "--help"], []])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys\n"
        "from aether_core.cli.main import run\n"
        f"code = run({words!r})\n"
        f"print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules)), code, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    allowed = ["httpx"] if "deploy" in words else []  # Its module holds the client.
    assert f"LOADED {allowed} " in done.stderr


@pytest.mark.parametrize(("no_color", "is_coloured"), [("", True), ("1", False)])
def test_colour_is_for_terminals_and_can_be_switched_off(
    desk: Desk, no_color: str, is_coloured: bool
) -> None:
    desk.script = healthy_but({})
    shown = on_a_terminal(["node", "list"], {"NO_COLOR": no_color, "TERM": "xterm"})
    assert "node-1" in shown
    assert ("\x1b[" in shown) == is_coloured


def on_a_terminal(words: list[str], env: dict[str, str]) -> str:
    """Run `aether` with a terminal as its output; return all that it showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "aether_core.cli.main", *words]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **env}
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # The other side of the terminal is closed.
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()


@pytest.mark.parametrize(("answer", "code"), [("n\n", 130), ("y\n", 0)])
def test_on_a_terminal_a_question_is_asked(desk: Desk, answer: str, code: int) -> None:
    desk.script = healthy_but({})
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "aether_core.cli.main", "undeploy", "shop", "--detach"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(ours, answer.encode())
    out, err = process.communicate()
    os.close(theirs)
    os.close(ours)
    assert process.returncode == code, err
    assert "Remove blueprint 'shop'" in err
    assert out == ""
    assert ("DELETE /v1/blueprints/shop" in desk.script.asked) == (code == 0)


def test_logs_of_a_node_that_is_gone_are_said_to_be_missing(desk: Desk) -> None:
    lines = (
        '{"node": "node-1", "instance": "web-1", "line": "hello"}\n'
        '{"node": "node-2", "instance": "web-2", "lost": "no answer"}\n'
    )
    desk.script = healthy_but({r"GET /v1/logs\?": Answer(200, lines)})
    code, out, err = desk.types("logs", "web")
    assert (code, out) == (0, "web-1@node-1 | hello\n")
    assert err == "no more of web-2@node-2: no answer\n"
