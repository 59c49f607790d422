"""/v1/tokens: who may talk to the cluster."""

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from aether_core import keys
from aether_core.api.auth import Caller, get_node, require
from aether_core.api.once import RequestId, answer_of, commit_once
from aether_core.errors import Conflict, NotFound
from aether_core.model import Role, TokenRecord, to_plain
from aether_core.node import Node
from aether_core.store import Compare, Delete, put
from aether_core.token import new_token

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])


LONGEST_S = 10 * 365 * 86_400


class NewToken(BaseModel, extra="forbid"):
    #: No spaces: the audit log writes nodes as "node <id>".
    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$")
    role: Role
    expires_in_s: int | None = Field(None, ge=1, le=LONGEST_S)


@router.post("")
async def create(
    body: NewToken,
    request_id: RequestId,
    _: Annotated[Caller, require(Role.ADMIN)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """Make a token; its text is in this answer and nowhere else.

    A repeated request gets the same token with another text: that of the first is not kept.
    """
    before = await answer_of(node, request_id)
    now = node.clock.at()
    expires_at = now + timedelta(seconds=body.expires_in_s) if body.expires_in_s else None
    text, record = new_token(
        body.name,
        body.role,
        now=now,
        expires_at=expires_at,
        identity=before["id"] if before else None,
    )
    key = keys.token(record.id)
    if before is None:
        compares = [Compare(key, created=0)]
        answer = {"id": record.id}
        done = await commit_once(
            node, request_id, [put(key, record)], compares=compares, answer=answer
        )
        if done != answer:
            raise Conflict("the same request is being answered elsewhere", hint="send it again")
    else:
        compares = [Compare(key, modified=(await node.fresh()).modified(key))]
        await commit_once(node, "", [put(key, record)], compares=compares, answer={})
    return {"token": text, **_shown(record)}


@router.get("")
async def list_tokens(
    _: Annotated[Caller, require(Role.ADMIN)], node: Annotated[Node, Depends(get_node)]
) -> dict[str, Any]:
    """All tokens, without what proves them."""
    mirror = await node.fresh()
    return {"tokens": [_shown(record) for record in mirror.all(TokenRecord, keys.TOKENS)]}


@router.delete("/{identity}")
async def revoke(
    identity: str,
    request_id: RequestId,
    _: Annotated[Caller, require(Role.ADMIN)],
    node: Annotated[Node, Depends(get_node)],
) -> dict[str, Any]:
    """End a token: every node refuses it as soon as it hears of it."""
    mirror = await node.fresh()
    if before := await answer_of(node, request_id):
        return dict(before)
    record = mirror.get(TokenRecord, keys.token(identity))
    if record is None:
        raise NotFound(f"token '{identity}' not found")
    writes = [Delete(keys.token(identity))]
    return await commit_once(node, request_id, writes, answer={"revoked": identity})


def _shown(record: TokenRecord) -> dict[str, Any]:
    shown = dict(to_plain(record))
    assert asdict(record).keys() == shown.keys()
    del shown["sha256"]
    return shown
