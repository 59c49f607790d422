"""The audit log: who changed what, from where, with which result. Never bodies, never tokens.

Plain ASGI, so that bodies and answers stream through untouched.
"""

import json
import secrets
from typing import Any

from loguru import logger
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aether_core import keys
from aether_core.errors import AetherError
from aether_core.leases import ExpiringLease
from aether_core.model import Role
from aether_core.node import Node
from aether_core.store import Put

KEPT_S = 30 * 86_400
READING = ("GET", "HEAD", "OPTIONS")


class Audit:
    """Writes a line about every change before its answer goes out."""

    def __init__(self, app: ASGIApp, node: Node) -> None:
        self._app = app
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_answered = False

        async def audited(message: Message) -> None:
            nonlocal has_answered
            if message["type"] == "http.response.start":
                has_answered = True
                await write_audit(self._node, scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, audited)
        except Exception:  # Answered like any other request, and said in the audit log.
            if not has_answered:  # The error page is made outside of us.
                await write_audit(self._node, scope, AetherError.http_status)
            raise


async def write_audit(node: Node, scope: Scope, status: int) -> None:
    """Keep a line about a change, for thirty to sixty days; what changes nothing leaves none."""
    state: dict[str, Any] = scope.get("state", {})
    caller = state.get("caller")
    # A viewer changes nothing, whatever the method: a plan is a POST.
    is_reading = scope["method"] in READING or state.get("needed") == Role.VIEWER
    if is_reading or caller is None or node.store is None:
        return
    at = node.clock.at()
    line = {
        "at": at.isoformat(timespec="milliseconds"),
        "who": caller.name,
        "what": f"{scope['method']} {scope['path']}",
        "from": scope["client"][0] if scope.get("client") else "",
        "node": node.id,
        "status": status,
    }
    if node.audit_lease is None:
        node.audit_lease = ExpiringLease(node.store, node.clock, 2 * KEPT_S)
    key = f"{keys.AUDIT}{int(at.timestamp() * 1000):013d}-{secrets.token_hex(3)}"
    try:
        await node.audit_lease.commit(Put(key, json.dumps(line).encode()))
    except AetherError as error:  # The change is done: its answer must not be lost over this.
        logger.error("audit line not stored: {}: {}", error, line)
