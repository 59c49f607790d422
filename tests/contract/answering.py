"""A small HTTPS server that answers what a test wants, for the command line to talk to."""

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HUNG_S = 30.0


@dataclass(frozen=True)
class Answer:
    """`body`: a document, or text. Without a status the server is silent until the test ends."""

    status: int | None
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Script:
    """What is answered: the first rule "METHOD /path regex" that matches, else `other`."""

    other: Answer
    rules: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, method: str, path: str) -> Answer:
        said = f"{method} {path}"
        self.asked.append(said)
        found = (answer for rule, answer in self.rules.items() if re.match(rule, said))
        return next(found, self.other)


@contextmanager
def answering(tls: ssl.SSLContext, script: Callable[[], Script]) -> Iterator[int]:
    """Serve on a free port of loopback; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = (
            True  # Else each answer waits for the acknowledgement of its head.
        )

        def do_GET(self) -> None:
            current = script()
            self._take_body()
            answer = current.answer(self.command, self.path)
            if answer.status is None:
                current.over.wait(HUNG_S)
                self.close_connection = True
                return
            is_text = isinstance(answer.body, str)
            content = answer.body if is_text else json.dumps(answer.body)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content.encode())))
            self.end_headers()
            self.wfile.write(content.encode())

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815  The names are the library's.

        def _take_body(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that leaves is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
