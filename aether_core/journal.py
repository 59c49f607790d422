"""What a bootstrap meant to do and did, on disk before it goes on: a second run resumes from it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aether_core.clock import Clock


@dataclass(frozen=True)
class Line:
    """One line: `event` is `intent`, `done` or `failed`; `about` names the step or machine."""

    event: str
    about: str
    at: str


class Journal:
    """An append-only file of JSON lines, each on disk before `write` returns."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    def write(self, event: str, about: str) -> None:
        """Append a line; when this returns it is on disk."""
        line: dict[str, Any] = {
            "at": self._clock.at().isoformat(timespec="milliseconds"),
            "event": event,
            "about": about,
        }
        with self._path.open("ab+") as file:
            # After a line that a crash cut short, begin a new one: joined, both were lost.
            if file.tell() and not self._path.read_bytes().endswith(b"\n"):
                file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[Line]:
        """Return all lines; one that a crash cut short is left out."""
        if not self._path.exists():
            return []
        found = []
        for text in self._path.read_bytes().splitlines():
            try:
                found.append(Line(**json.loads(text)))
            except (ValueError, TypeError):
                continue  # Cut short by a crash: what it announced had not begun.
        return found
