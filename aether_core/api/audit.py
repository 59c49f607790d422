"""The audit log: who changed what, from where, with which result. Never bodies, never tokens."""

import json
import secrets

from fastapi import Request
from loguru import logger

from aether_core import keys
from aether_core.errors import Unavailable
from aether_core.leases import ExpiringLease
from aether_core.node import Node
from aether_core.store import Put

KEPT_S = 30 * 86_400
READING = ("GET", "HEAD", "OPTIONS")


async def write_audit(node: Node, request: Request, status: int) -> None:
    """Keep a line about a change, for thirty to sixty days; reads leave none."""
    caller = getattr(request.state, "caller", None)
    if request.method in READING or node.store is None or caller is None:
        return
    at = node.clock.at()
    line = {
        "at": at.isoformat(timespec="milliseconds"),
        "who": caller.name,
        "what": f"{request.method} {request.url.path}",
        "from": request.client.host if request.client else "",
        "node": node.id,
        "status": status,
    }
    if node.audit_lease is None:
        node.audit_lease = ExpiringLease(node.store, node.clock, 2 * KEPT_S)
    key = f"{keys.AUDIT}{int(at.timestamp() * 1000):013d}-{secrets.token_hex(3)}"
    try:
        lease = await node.audit_lease.current()
        await node.store.commit([Put(key, json.dumps(line).encode(), lease)])
    except Unavailable as error:
        logger.warning("audit line not stored: {}: {}", error, line)
