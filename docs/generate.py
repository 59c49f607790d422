"""Write the references from the code: `make docs`. A test fails where a file differs.

Everything under docs/reference and docs/schemas is written whole; in other pages only what stands
between `<!-- generated: NAME -->` and `<!-- end -->` is.
"""

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click
from aether_strategies.options import Options
from pydantic import BaseModel

from aether_core import deployment, drivers, errors, hookspecs, lifecycle
from aether_core.blueprint import Blueprint
from aether_core.cli.main import COMMANDS, aether
from aether_core.cluster_config import ClusterConfig
from aether_core.config import json_schema
from aether_core.drivers import API_VERSION
from aether_core.errors import AetherError
from aether_core.plugins import import_attribute
from aether_core.settings import PREFIX, Settings

DOCS = Path(__file__).parent
NOTE = "<!-- Written by `make docs` from the code: change it there. -->\n\n"
MODELS: Mapping[str, type[BaseModel]] = {
    "cluster": ClusterConfig,
    "blueprint": Blueprint,
    "aether": Settings,
}
#: Pages written by hand that hold generated parts.
PAGES_WITH_PARTS = ("design.md",)

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "wrong usage: no such command, option or value",
    3: "a configuration or a plugin is wrong; nothing was changed",
    4: "refused: a rule, a role or a plugin said no; nothing was changed",
    5: "unavailable, or the outcome is unknown: look before you repeat",
    6: "rolled back: the strategy worked, the deployment did not land",
    7: "stopped waiting; the operation goes on",
    130: "interrupted, or answered no",
}

#: Variables that are no settings, and who reads them.
OTHER_VARIABLES = {
    "AETHER_SETTINGS": "Where `aether.toml` is, instead of in the configuration directory.",
    "AETHER_SECRET_*": "Secrets for the local provider: `${secrets:cluster/secret}` is "
    "`AETHER_SECRET_CLUSTER_SECRET`.",
    "AETHER_DISABLE_PLUGINS": "Hook plugins to leave out: distributions or names, with commas; "
    "`all` for every one.",
    "AETHER_TRACE_HOOKS": "Set to anything: every call of a hook is told on standard error.",
    "NO_COLOR": "Set to anything: no colour, nothing that changes in place.",
}

#: What every instance finds in its environment beside the blueprint's `env`.
INSTANCE_VARIABLES = {
    "PORT": "The port to listen on, on 127.0.0.1.",
    "AETHER_SLICE": "Its slice's name.",
    "AETHER_INSTANCE": "Its own name, such as `web-4`.",
    "AETHER_VERSION": "Its artifact's version.",
    "AETHER_MESH_URL": "The node's inner listener: an HTTP proxy for `http://<slice>.aether`.",
    "HOME": "A directory of its own, which is also where it starts.",
    "TMPDIR": "A directory of its own below `HOME`.",
    "PATH": "The node agent's.",
    "LANG": "The node agent's.",
}


def main() -> None:
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def generated() -> dict[Path, str]:
    """Return every file that is written by this script, and what it must hold."""
    reference = {
        "cli.md": cli(),
        "settings.md": settings(),
        "cluster.md": cluster(),
        "blueprint.md": blueprint(),
        "strategies.md": strategies(),
        "errors.md": error_tree(),
        "hooks.md": hooks(),
    }
    files = {DOCS / "reference" / name: NOTE + text for name, text in reference.items()}
    for name, model in MODELS.items():
        schema = json.dumps(json_schema(model), indent=2, sort_keys=True)
        files[DOCS / "schemas" / f"{name}.schema.json"] = schema + "\n"
    for name in PAGES_WITH_PARTS:
        files[DOCS / name] = with_parts((DOCS / name).read_text())
    return files


# The command line


def cli() -> str:
    parts = [
        "# Commands\n",
        "Results go to standard output, talk goes to standard error. `--json` gives one document, "
        'or for streams one object per line; the first names its schema, `"aether/v1"`. '
        "Every command has `-h` and `--help`. How one ends is in [errors.md](errors.md).\n",
        "## aether\n",
        *_command_page(aether, "aether"),
    ]
    for path, command in commands():
        if not isinstance(command, click.Group) or command.invoke_without_command:
            parts += [f"## {path}\n", *_command_page(command, path)]
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command of ours with the words that call it, plugins' ones left out."""
    for name, (path, _) in COMMANDS.items():
        yield from _below(f"aether {name}", import_attribute(path))


def _below(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            # `aether deploy FILE` is a hidden verb that nobody types.
            yield from _below(words if child.hidden else f"{words} {name}", child)


def _command_page(command: click.Command, words: str) -> list[str]:
    context = click.Context(command, info_name=words)
    pieces = " ".join(command.collect_usage_pieces(context))
    text = inspect.cleandoc(command.help or "").replace("\b\n", "").strip()
    page = [f"```\n{words} {pieces}\n```\n", text + "\n"]
    records = [p.get_help_record(context) for p in command.params if isinstance(p, click.Option)]
    rows = [[f"`{record[0]}`", record[1]] for record in records if record]
    return [*page, _table(["option", "meaning"], rows)] if rows else page


# Files and variables


def settings() -> str:
    schema = json_schema(Settings)
    rows = [
        [f"`{key}`", f"`{PREFIX}{key.upper()}`", _type(part), _default(part), part["description"]]
        for key, part in schema["properties"].items()
    ]
    return "\n".join(
        [
            "# Settings: aether.toml\n",
            "A user's or a node's own settings. A variable goes before the file, the file before "
            "the default; an option goes before all of them. The file is `aether.toml` in the "
            "configuration directory. An unknown key is an error.\n",
            _table(["key", "variable", "type", "default", "meaning"], rows),
            "## Other variables\n",
            _table(["variable", "meaning"], _code_first(OTHER_VARIABLES)),
            "## What an instance is given\n",
            "Nothing else of the node's environment reaches it: no secret of the cluster, no "
            "credentials.\n",
            _table(["variable", "meaning"], _code_first(INSTANCE_VARIABLES)),
        ]
    )


def cluster() -> str:
    return "\n".join(
        [
            "# cluster.toml\n",
            "What a cluster is made of: `aether cluster bootstrap --config cluster.toml`. "
            "Plugins may add tables of their own. `${env:NAME}` and `${secrets:path}` are "
            "replaced after parsing. Editors find the schema in "
            "[cluster.schema.json](../schemas/cluster.schema.json); "
            "`aether config check FILE` checks without a cluster.\n",
            *_tables(json_schema(ClusterConfig)),
        ]
    )


def blueprint() -> str:
    return "\n".join(
        [
            "# blueprint.toml\n",
            "Which slices of which artifacts run, and how: `aether deploy blueprint.toml`. "
            "Editors find the schema in "
            "[blueprint.schema.json](../schemas/blueprint.schema.json); "
            "`aether config check FILE` checks without a cluster. What an instance finds in its "
            "environment is in [settings.md](settings.md#what-an-instance-is-given), the options "
            "of strategies are in [strategies.md](strategies.md).\n",
            *_tables(json_schema(Blueprint)),
        ]
    )


def _tables(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield a section for each table of a file, in the order of the models."""
    for key, part in schema["properties"].items():
        yield from _table_sections(key, part, schema["$defs"])


def _table_sections(path: str, part: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    table = known[_reference(part)]
    needed = table.get("required", [])
    inner = {key: p for key, p in table["properties"].items() if _reference(p)}
    rows = [
        [f"`{key}`", _type(p), "required" if key in needed else _default(p), p["description"]]
        for key, p in table["properties"].items()
        if key not in inner
    ]
    yield f"## [[{path}]]\n" if "items" in part else f"## [{path}]\n"
    yield _words(table["description"]) + "\n"
    yield _table(["key", "type", "default", "meaning"], rows)
    for key, p in inner.items():
        yield from _table_sections(f"{path}.{key}", p, known)


def _reference(part: Mapping[str, Any]) -> str:
    """Return the name of the table that a key holds, or nothing for a plain value."""
    for candidate in (part, part.get("items", {}), *part.get("anyOf", [])):
        if "$ref" in candidate:
            return str(candidate["$ref"]).rpartition("/")[2]
    return ""


def _type(part: Mapping[str, Any]) -> str:
    if "anyOf" in part:
        return " or ".join(_type(one) for one in part["anyOf"] if one.get("type") != "null")
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    words = "table of strings" if part["type"] == "object" else str(part["type"])
    bounds = {
        "minimum": "at least {}",
        "exclusiveMinimum": "more than {}",
        "maximum": "at most {}",
        "maxLength": "at most {} characters",
    }
    limits = [text.format(part[key]) for key, text in bounds.items() if key in part]
    return ", ".join([words, *limits])


def _default(part: Mapping[str, Any]) -> str:
    if part.get("default") is None:
        return ""
    return f"`{json.dumps(part['default'])}`"


def strategies() -> str:
    parts = [
        "# Strategies and their options\n",
        "Keys of `[strategy]` in a blueprint beside `kind`, such as `stage_s = 30`, or on the "
        "command line: `aether deploy FILE --strategy canary -o stage_s=30`. Plugins bring more.\n",
    ]
    for name, kind in strategy_kinds():
        options = _options_of(import_module(kind.__module__))
        rows = [[f"`{f.name}`", _python_default(f.default)] for f in dataclasses.fields(options)]
        parts += [f"## {name}\n", _words(kind.__doc__) + "\n"]
        if rows:
            kinds = [k for k in options.__mro__ if issubclass(k, Options) and k is not Options]
            parts += [_words(k.__doc__) + "\n" for k in kinds]
            parts.append(_table(["option", "default"], rows))
    return "\n".join(parts)


def strategy_kinds() -> list[tuple[str, type]]:
    """Return the strategies that come with Aether, by name."""
    points = sorted(entry_points(group="aether.strategies"), key=lambda point: point.name)
    return [(p.name, p.load()) for p in points if p.module.startswith("aether_strategies.")]


def _options_of(module: ModuleType) -> type[Options]:
    found = [k for k in vars(module).values() if isinstance(k, type) and issubclass(k, Options)]
    return next((kind for kind in found if kind.__module__ == module.__name__), Options)


def _python_default(value: object) -> str:
    return "" if value in (None, "") else f"`{json.dumps(value)}`"


# Errors


def error_tree() -> str:
    rows = [
        [
            f"{'&nbsp;&nbsp;' * depth}`{kind.__name__}`",
            str(kind.exit_code),
            str(kind.http_status),
            _words(kind.__doc__),
        ]
        for depth, kind in error_kinds(AetherError)
    ]
    return "\n".join(
        [
            "# Errors and exit codes\n",
            "The command line, the API and plugins share one tree. The API sends a failure as a "
            "problem document (RFC 9457) whose `type` is the class; the command line rebuilds it, "
            "prints one line and what to try, and exits with its code. Anything else is a "
            "traceback and a bug of ours.\n",
            "## Exit codes\n",
            _table(["code", "meaning"], [[str(code), text] for code, text in EXIT_CODES.items()]),
            "## Errors\n",
            _table(["error", "exit", "HTTP", "meaning"], rows),
        ]
    )


def error_kinds(kind: type[AetherError], depth: int = 0) -> Iterator[tuple[int, type[AetherError]]]:
    """Yield the tree of errors that `errors.py` holds, with how deep each stands."""
    if kind.__module__ == errors.__name__:
        yield depth, kind
        for child in kind.__subclasses__():
            yield from error_kinds(child, depth + 1)


# Plugins


def hooks() -> str:
    parts = [
        "# Hooks and drivers\n",
        f"What plugins implement; plugin API version {API_VERSION}. *stevedore finds and builds "
        "what the configuration names; pluggy calls everyone who listens.* A plugin imports from "
        "`aether_core` only `hookspecs`, `drivers`, `model`, `errors`, `clock`, `judge`, "
        "`evidence` and `testing`: that list is the public API. The values named here are in "
        "`model.py`.\n",
        "## Hooks\n",
        f"Plain functions marked `@hookimpl` in a module under the entry-point group "
        f"`{hookspecs.GROUP}`.\n",
        inspect.cleandoc(hookspecs.__doc__ or "").partition("plugins. ")[2] + "\n",
    ]
    for name, hook in hook_functions():
        text = inspect.cleandoc(hook.__doc__)
        parts += [f"### {name}\n", _python(_signature(hook)), text + "\n"]
    parts.append("## Events\n")
    parts += [_python(inspect.getsource(kind)) for kind in event_kinds()]
    parts += [
        "## Drivers\n",
        "Classes under an entry-point group of their own; the configuration names which one.\n",
        *(_python(inspect.getsource(kind)) for kind in driver_kinds()),
    ]
    return "\n".join(parts)


def hook_functions() -> list[tuple[str, Any]]:
    return [(n, f) for n, f in vars(hookspecs).items() if n.startswith("aether_")]


def event_kinds() -> Sequence[type]:
    return get_args(hookspecs.Event) or (hookspecs.Event,)


def driver_kinds() -> list[type]:
    """Return what drivers.py defines, in its order."""
    return [
        kind
        for kind in vars(drivers).values()
        if isinstance(kind, type) and kind.__module__ == drivers.__name__
    ]


def _signature(function: Any) -> str:
    match = re.search(r"^def .*?(?=:$)", inspect.getsource(function), re.DOTALL | re.MULTILINE)
    assert match, "a hook is a plain function"
    return match[0]


# Parts of pages written by hand


def with_parts(page: str) -> str:
    """Return the page with its generated parts written anew."""
    parts = {
        "deployment states": _diagram(deployment.LEGAL_MOVES),
        "node states": _diagram(lifecycle.LEGAL_MOVES),
    }

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{parts[match[2]]}\n{match[3]}"

    pattern = r"(<!-- generated: ([a-z ]+) -->)\n.*?(<!-- end -->)"
    return re.sub(pattern, fill, page, flags=re.DOTALL)


def _diagram(moves: Mapping[Any, Sequence[str]]) -> str:
    first = next(iter(moves))
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    for state, allowed in moves.items():
        lines += [f"    {state} --> {after}" for after in allowed or ("[*]",)]
    return "```mermaid\n" + "\n".join(lines) + "\n```"


# Small pieces


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code_first(meanings: Mapping[str, str]) -> list[list[str]]:
    return [[f"`{name}`", meaning] for name, meaning in meanings.items()]


def _python(source: str) -> str:
    return f"```python\n{textwrap.dedent(source).rstrip()}\n```\n"


def _words(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    main()
