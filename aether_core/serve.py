"""The door to uvicorn: serves the API over TLS inside the agent's own loop."""

import asyncio
import socket
import ssl
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aether_core.errors import AetherError

GRACE_S = 5
LONGEST_HEAD_BYTES = 64 * 1024


class PeerAwareProtocol(HttpToolsProtocol):
    """Tells the application whose verified certificate the client showed; bounds what it sends
    before it says who it is, which the parser would collect for ever."""

    head_bytes = 0
    is_in_head = True

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.head_bytes = self.head_bytes + len(data) if self.is_in_head else 0
        if self.head_bytes > LONGEST_HEAD_BYTES:
            self.transport.abort()

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            # `close` would wait for the client's own end of TLS, which an idle one does not send.
            self.transport.abort()
        else:
            super().shutdown()

    def on_headers_complete(self) -> None:
        self.is_in_head = False
        super().on_headers_complete()

    def on_message_begin(self) -> None:
        self.is_in_head = True
        super().on_message_begin()
        tls: Any = self.transport.get_extra_info("ssl_object")
        self.scope["extensions"] = {"aether.peer": (tls.getpeercert() if tls else None) or {}}


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """Signals belong to the agent."""


async def serve(app: Any, host: str, port: int, tls: ssl.SSLContext) -> None:
    """Answer until cancelled. Errors: AetherError when the port is taken."""
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        http=PeerAwareProtocol,
        ws="none",
        loop="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    config.load()
    config.ssl = tls  # Our own context, so that its certificate can be replaced while it serves.
    config.loaded = True
    server = _Server(config)
    serving = asyncio.ensure_future(server._serve([listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise AetherError(
            f"the API cannot listen on {host}:{port}: {error.strerror or error}",
            hint=f"stop what listens there, or choose another [network] api than {port}",
        ) from error
    listener.listen(1024)
    listener.setblocking(False)
    return listener
