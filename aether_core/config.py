"""Files a user writes: read, checked against a model, every problem shown with its line.

`${env:NAME}` and `${secrets:path}` are resolved in parsed values, never by splicing text into TOML.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from aether_core.errors import ConfigError, NotFound, Problem

Keys = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

#: A TOML document's strings, comments, brackets, line ends, and what lies between.
_TOKEN = re.compile(
    r""""{3}(?:\\.|[^\\])*?"{3}|\'{3}.*?\'{3}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'"""
    r"""|#[^\n]*|[\[\]{}]|\n|[^"'#\[\]{}\n]+|["']""",
    re.DOTALL,
)
PLACEHOLDER = re.compile(r"\$\{(env|secrets):([^${}]+)\}")
#: What looks like one, but not what a shell writes: ${PORT:-80}, ${NAME:0:3}.
_MISTAKEN = re.compile(rf"(?!{PLACEHOLDER.pattern})\$\{{[A-Za-z]+:(?![-=?+\d])")


class Table(BaseModel):
    """Base of every model of a file: unknown keys and silent conversions are errors."""

    # TOML knows infinity and not-a-number; JSON, in which all is sent and kept, does not.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Document:
    """A parsed TOML file and the line each key stands on."""

    file: str
    values: dict[str, Any]
    lines: Mapping[Keys, int] = field(repr=False)

    def line_of(self, keys: Keys) -> int:
        """Return the line of the key, or of the closest table around it."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                return self.lines[keys[:end]]
        return 1


def read_toml(path: Path) -> Document:
    """Parse a TOML file. Errors: ConfigError with the line of what is not TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"file '{path}' not found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"file '{path}' not readable: {error}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+), column \d+\)|\(at end of document\)", str(error))
        line = int(match[1]) if match and match[1] else text.count("\n") + 1
        reason = re.sub(r" \(at .*\)$", "", str(error))
        problem = Problem(str(path), line, "", f"not valid TOML: {reason[:1].lower()}{reason[1:]}")
        raise ConfigError(f"'{path}' is not valid", problems=(problem,)) from None
    return Document(str(path), values, dict(_lines(text)))


def validate(document: Document, model: type[Model]) -> Model:
    """Return the document as `model`. Errors: ConfigError with every problem at once."""
    problems = list(_mistaken_placeholders(document))
    try:
        valid = model.model_validate(document.values)
    except ValidationError as error:
        problems += problems_of(error, document, model=model)
    if problems:
        problems.sort(key=lambda problem: problem.line)
        raise ConfigError(f"'{document.file}' is not valid", problems=tuple(problems))
    return valid


def wrong(reason: str, *at: str | int) -> PydanticCustomError:
    """Return what a model's validator raises to name the key below it that is wrong."""
    return PydanticCustomError("wrong", "{reason}", {"reason": reason, "at": at})


def problems_of(
    error: ValidationError,
    document: Document | None,
    *,
    file: str = "",
    model: type[BaseModel] | None = None,
) -> list[Problem]:
    """Translate what pydantic found into our problems, in file order."""
    found = []
    for detail in error.errors():
        at = detail.get("ctx", {}).get("at", ())
        keys = tuple(key for key in (*detail["loc"], *at) if key != "[key]")
        line = document.line_of(keys) if document else 0
        reason, hint = _reason(dict(detail), keys, model)
        name = document.file if document else file
        found.append(Problem(name, line, _dotted(keys), reason, hint))
    return sorted(found, key=lambda problem: problem.line)


def references(value: object) -> list[tuple[str, str]]:
    """Return every placeholder in a value tree as (kind, name), in order."""
    if isinstance(value, str):
        return [(kind, name) for kind, name in PLACEHOLDER.findall(value)]
    if isinstance(value, Mapping):
        return [found for item in value.values() for found in references(item)]
    if isinstance(value, list | tuple):
        return [found for item in value for found in references(item)]
    return []


async def resolve(
    value: Any, get_secret: Callable[[str], Awaitable[str]], *, where: str = "configuration"
) -> Any:
    """Return the value tree with all placeholders replaced.

    Errors: ConfigError naming every one that has no value; values are never shown.
    """
    known: dict[tuple[str, str], str] = {}
    problems = []
    for kind, name in dict.fromkeys(references(value)):
        try:
            known[kind, name] = os.environ[name] if kind == "env" else await get_secret(name)
        except KeyError:
            reason = f"environment variable '{name}' is not set"
            problems.append(Problem(where, 0, f"${{env:{name}}}", reason, f"export {name}=..."))
        except NotFound as error:
            problems.append(Problem(where, 0, f"${{secrets:{name}}}", error.message, error.hint))
    if problems:
        missing = ", ".join(problem.key for problem in problems)
        raise ConfigError(f"{where}: no value found for {missing}", problems=tuple(problems))
    return _replaced(value, known)


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema that editors use."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def _mistaken_placeholders(document: Document) -> Iterator[Problem]:
    if not document.lines:
        return  # Not a file: its placeholders were resolved, and values may look like anything.
    for keys, text in _strings(document.values):
        for found in _MISTAKEN.finditer(text):
            reason = f"'{found[0]}' begins no placeholder"
            hint = "${env:NAME} or ${secrets:path}"
            yield Problem(document.file, document.line_of(keys), _dotted(keys), reason, hint)


def _strings(value: object, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, (*keys, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*keys, index))


def without_default(schema: dict[str, Any]) -> None:
    """Keep out of a JSON schema a default that is computed, or that a user writes differently."""
    schema.pop("default", None)


def _replaced(value: Any, known: Mapping[tuple[str, str], str]) -> Any:
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda match: known[match[1], match[2]], value)
    if isinstance(value, Mapping):
        return {key: _replaced(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(item, known) for item in value)
    return value


def _reason(detail: dict[str, Any], keys: Keys, model: type[BaseModel] | None) -> tuple[str, str]:
    """Return why, and what to do."""
    if detail["type"] == "extra_forbidden":
        table = _table(model, keys[:-1])
        names = sorted(table.model_fields) if table else []
        near = difflib.get_close_matches(str(keys[-1]), names, n=1, cutoff=0.5)
        if near:
            return "unknown key", f"did you mean '{near[0]}'?"
        return "unknown key", f"known here: {', '.join(names)}" if names else ""
    if detail["type"] == "missing":
        return "missing", ""
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[:1].lower() + message[1:]
    given, told = detail.get("input"), detail["type"] in ("value_error", "wrong")
    if isinstance(given, str | int | float | bool) and not told and _may_be_shown(model, keys):
        message += f", not {given!r}"
    reason, _, hint = message.partition("; try: ")
    return reason, hint


def _may_be_shown(model: type[BaseModel] | None, keys: Keys) -> bool:
    """Return whether the value at `keys` is no secret: fields out of `repr` hold some."""
    for end in range(len(keys), 0, -1):
        table = _table(model, keys[: end - 1])
        if table is not None and keys[end - 1] in table.model_fields:
            return table.model_fields[str(keys[end - 1])].repr
    return True


def _table(model: type[BaseModel] | None, keys: Keys) -> type[BaseModel] | None:
    """Return the model that `keys` lead to."""
    for key in keys:
        if model is None:
            return None
        if isinstance(key, int):
            continue
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        model = _model_in(annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)


def _dotted(keys: Keys) -> str:
    text = ""
    for key in keys:
        text += f"[{key + 1}]" if isinstance(key, int) else f".{key}" if text else key
    return text


# Where each key stands. tomllib gives no positions, so the statements are found again here: a
# statement ends at a line's end outside quotes and brackets.


def _lines(text: str) -> Iterator[tuple[Keys, int]]:
    table: Keys = ()
    counts: dict[Keys, int] = {}
    for line, statement in _statements(text):
        if statement.startswith("[["):
            keys = _resolve_arrays(_key_parts(statement[2 : statement.index("]]")]), counts)
            counts[keys] = counts.get(keys, -1) + 1
            table = (*keys, counts[keys])
            yield keys, line
            yield table, line
        elif statement.startswith("["):
            table = _resolve_arrays(_key_parts(statement[1 : statement.rindex("]")]), counts)
            yield table, line
        else:
            path = (*table, *_key_parts(_before_equals(statement)))
            for end in range(len(table) + 1, len(path) + 1):
                yield path[:end], line


def _resolve_arrays(parts: list[str], counts: Mapping[Keys, int]) -> Keys:
    """Turn [slices.health] into the keys of the last [[slices]] begun."""
    keys: Keys = ()
    for part in parts[:-1]:
        keys = (*keys, part)
        if keys in counts:
            keys = (*keys, counts[keys])
    return (*keys, parts[-1])


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each statement without its comments, and the line it begins on."""
    line, begun, depth, statement = 1, 1, 0, ""
    for part in _TOKEN.findall(text + "\n"):
        if part == "\n" and depth == 0:
            if statement.strip():
                yield begun, statement.strip()
            statement = ""
        elif not part.startswith("#"):
            begun = begun if statement.strip() else line
            depth += (part in "[{") - (part in "]}")
            statement += part
        line += part.count("\n")


def _before_equals(statement: str) -> str:
    quote = ""
    for position, char in enumerate(statement):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "=":
            return statement[:position]
    return statement


def _key_parts(text: str) -> list[str]:
    parts = re.findall(r'"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|([A-Za-z0-9_-]+)', text)
    return [a or b or c for a, b, c in parts]
