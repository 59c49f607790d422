"""Visitors that ask an Envoy many things, quickly: one connection, one request after another."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BOUND_S = 60.0


@dataclass(frozen=True)
class Visit:
    """One request. `host`: of its Host header."""

    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    host: str = "shop.example"


@dataclass(frozen=True)
class Answer:
    """`cookie`: name and value of the one that was set, without its attributes."""

    status: int
    text: str
    cookie: str = ""
    cookie_attributes: str = ""


async def visit(port: int, visits: Iterable[Visit]) -> list[Answer]:
    """Return the answers in the order of the visits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(BOUND_S):
            return [await _ask(reader, writer, one) for one in visits]
    finally:
        writer.close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, one: Visit) -> Answer:
    lines = [f"GET {one.path} HTTP/1.1", f"Host: {one.host}"]
    lines += [f"{name}: {value}" for name, value in one.headers.items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
    body = await reader.readexactly(int(fields.get("content-length", "0")))
    said = [line for line in head.splitlines() if line.lower().startswith("set-cookie: ")]
    cookie, _, attributes = said[0][len("set-cookie: ") :].partition("; ") if said else ("", "", "")
    return Answer(int(head.split()[1]), body.decode(), cookie, attributes)
