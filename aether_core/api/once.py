"""Changes that are safe to send twice: the request's id is stored with what it did."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import Depends, Header, Request

from aether_core import keys
from aether_core.errors import Conflict
from aether_core.leases import ExpiringLease
from aether_core.node import REACH_TIMEOUT_S, Node
from aether_core.store import Compare, Delete, Put

# How long a repeated request is recognised.
REMEMBER_S = 3600


def _request_id(
    request: Request, x_aether_request: Annotated[str, Header(max_length=64)] = ""
) -> str:
    """Return what to remember the request by: an id sent with another request is another one."""
    if not x_aether_request:
        return ""
    text = f"{request.method} {request.url.path} {x_aether_request}"
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


RequestId = Annotated[str, Depends(_request_id)]


async def answer_of(node: Node, request_id: str) -> Any | None:
    """Return what this request was answered before, None when it is new.

    Ask after `Node.fresh`: what the mirror shows then may be what this very request did.
    """
    if not request_id:
        return None
    entry = await node.joined_store().get(keys.request(request_id))
    return None if entry is None else json.loads(entry.value)


async def commit_once(
    node: Node,
    request_id: str,
    writes: Iterable[Put | Delete],
    *,
    compares: Iterable[Compare] = (),
    answer: dict[str, Any],
) -> dict[str, Any]:
    """Write, with the request's id, and return `answer`; or what it was answered before.

    Errors: Conflict when a comparison failed; as `Store.commit`.
    """
    revision = await _commit(node, request_id, list(writes), list(compares), answer)
    if revision is None:
        before: dict[str, Any] | None = await answer_of(node, request_id)
        if before is not None:
            return before
        raise Conflict("somebody else changed it meanwhile", hint="look again, then repeat")
    with contextlib.suppress(TimeoutError):  # It is done, whenever this node hears of it.
        async with asyncio.timeout(REACH_TIMEOUT_S):
            await node.mirror.reach(revision)
    return answer


async def _commit(
    node: Node,
    request_id: str,
    writes: list[Put | Delete],
    compares: list[Compare],
    answer: dict[str, Any],
) -> int | None:
    store = node.joined_store()
    if not request_id:
        return await store.commit(writes, compares=compares)
    if node.request_lease is None:
        node.request_lease = ExpiringLease(store, node.clock, 2 * REMEMBER_S)
    key = keys.request(request_id)
    remembered = Put(key, json.dumps(answer).encode())
    compares = [*compares, Compare(key, created=0)]
    return await node.request_lease.commit(remembered, writes, compares=compares)
