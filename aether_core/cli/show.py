"""The one place that prints: results on standard output, talk on standard error.

`--json` gives one document, or one object per line for streams, each with `"schema": "aether/v1"`
in the first; colour only on a terminal and without NO_COLOR.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import click

SCHEMA = "aether/v1"
STATES = {
    "good": ("ON_DUTY", "READY", "COMPLETED", "ok", "done"),
    "bad": ("FAILED", "BACKOFF", "UNHEALTHY", "broken", "clash", "failed", "gone", "ROLLED_BACK"),
}


@dataclass
class Output:
    """How this command speaks. `is_json`: for machines."""

    is_json: bool = False
    has_begun: bool = False

    def document(self, kind: str, content: dict[str, Any]) -> None:
        """Print one result for machines."""
        self.line(kind, content)

    def line(self, kind: str, content: dict[str, Any]) -> None:
        """Print one object of a stream; the first one names the schema."""
        assert not {"schema", "kind"} & content.keys(), "content must not hide what it is"
        head = {} if self.has_begun else {"schema": SCHEMA}
        self.has_begun = True
        click.echo(json.dumps({**head, "kind": kind, **content}))

    def say(self, text: str) -> None:
        """Tell a person what goes on; machines are told in objects only."""
        if not self.is_json:
            click.echo(text, err=True)

    def table(self, titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print aligned columns."""
        cells = [[str(cell) for cell in row] for row in rows]
        heads = [title.upper() for title in titles]
        widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(len(heads))]
        for number, row in enumerate([heads, *cells]):
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            if number == 0:
                text = paint("  ".join(padded).rstrip(), bold=True)
            else:
                text = "  ".join(coloured(cell) for cell in padded).rstrip()
            click.echo(text)


def is_plain(stream: TextIO) -> bool:
    """Return whether colour and live displays are out of place."""
    return bool(os.environ.get("NO_COLOR")) or not stream.isatty()


def paint(text: str, **style: Any) -> str:
    return text if is_plain(sys.stdout) else click.style(text, **style)


def coloured(cell: str) -> str:
    """Colour a state as people expect it."""
    word = cell.strip()
    if word in STATES["good"]:
        return paint(cell, fg="green")
    if word in STATES["bad"]:
        return paint(cell, fg="red")
    return cell


def confirm(question: str, *, yes: bool) -> None:
    """Ask once. Errors: a usage error without a terminal, instead of waiting for ever."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to ask on: say --yes.")
    click.confirm(question, abort=True, err=True)


def size(size_bytes: float) -> str:
    """Return bytes for people: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


class Live:
    """Lines that change in place on a terminal, and are printed when they are final elsewhere."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._is_live = not out.is_json and not is_plain(sys.stderr)
        self._shown = 0

    def show(self, lines: Sequence[str]) -> None:
        """Replace what was shown."""
        if not self._is_live:
            return
        up = f"\x1b[{self._shown}A" if self._shown else ""
        body = "".join(f"\x1b[2K{line}\n" for line in lines)
        below = "\x1b[J"
        click.echo(up + body + below, nl=False, err=True)
        self._shown = len(lines)

    def settle(self, line: str) -> None:
        """Print a line that stays, above what still changes."""
        if self._out.is_json:
            return
        if self._is_live and self._shown:
            click.echo(f"\x1b[{self._shown}A\x1b[J", nl=False, err=True)
            self._shown = 0
        click.echo(line, err=True)
