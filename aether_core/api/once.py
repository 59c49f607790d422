"""Changes that are safe to send twice: the request's id is stored with what it did."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import Depends, Header

from aether_core import keys
from aether_core.errors import Conflict
from aether_core.leases import ExpiringLease
from aether_core.node import Node
from aether_core.store import Compare, Delete, Put

# How long a repeated request is recognised.
REMEMBER_S = 3600


def _request_id(x_aether_request: Annotated[str, Header(max_length=64)] = "") -> str:
    return x_aether_request


RequestId = Annotated[str, Depends(_request_id)]


async def answer_of(node: Node, request_id: str) -> Any | None:
    """Return what this request was answered before, None when it is new."""
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
    store = node.joined_store()
    writes, compares = list(writes), list(compares)
    if request_id:
        if node.request_lease is None:
            node.request_lease = ExpiringLease(store, node.clock, 2 * REMEMBER_S)
        key = keys.request(request_id)
        lease = await node.request_lease.current()
        writes.append(Put(key, json.dumps(answer).encode(), lease))
        compares.append(Compare(key, created=0))
    revision = await store.commit(writes, compares=compares)
    if revision is None:
        before: dict[str, Any] | None = await answer_of(node, request_id)
        if before is not None:
            return before
        raise Conflict("somebody else changed it meanwhile", hint="look again, then repeat")
    await node.mirror.reach(revision)
    return answer
