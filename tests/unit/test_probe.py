"""Asking an instance how it is: whatever answers, or does not, is a few words."""

import asyncio
import socket

import pytest

from aether_core.probe import probe


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.0 204\r\n\r\n", None),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", None),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "GET /up answered 404"),
        (b"HTTP/1.1 500 No\r\n\r\n", "GET /up answered 500"),
        (b"", "GET /up answered 0"),
        (b"SSH-2.0-OpenSSH\r\n", "GET /up answered 0"),
        (b"HTTP/1.1\r\n", "GET /up answered 0"),
        (b"HTTP/1.1 abc\r\n", "ValueError: "),
        (b"HTTP/1.1 200" + b" " * 5000, "ValueError: "),
    ],
)
async def test_answers(answer: bytes, expected: str | None) -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        reason = await probe(server.sockets[0].getsockname()[1], "/up", 20.0)
    assert reason == expected or (reason and expected and reason.startswith(expected))
    assert asked[0].startswith(b"GET /up HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_nobody_listens_and_nobody_answers() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert await probe(port, "/", 20.0) == f"nothing listens on port {port}"
        listener.listen()
        assert await probe(port, "/", 0.01) == "no answer within 0.01 s"
