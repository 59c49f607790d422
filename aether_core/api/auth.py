"""Who asks, and may he: bearer tokens with roles for people, certificates for nodes.

A route names what it needs: `Annotated[Caller, require(Role.OPERATOR)]`, or `require_node()`. A
route that names nothing fails a test.
"""

from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request

from aether_core import keys
from aether_core.certs import node_of
from aether_core.errors import Forbidden, Unauthenticated, Unavailable
from aether_core.model import NodeId, Role, TokenRecord
from aether_core.node import Node
from aether_core.token import is_secret_of, split_token

RANKS = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


@dataclass(frozen=True)
class Caller:
    """Who asks. `name`: the token's name, or "node <id>"."""

    name: str
    role: Role


def get_node(request: Request) -> Node:
    """Return the node this API belongs to."""
    node: Node = request.app.state.node
    return node


def require(role: Role) -> Any:
    """Return the dependency that lets in tokens of `role` or above, and the cluster's nodes."""

    # `async`, although nothing is awaited: a plain function would go to a thread of its own.
    async def check(request: Request) -> Caller:
        request.state.needed = role
        caller = _caller(request)
        if RANKS[caller.role] < RANKS[role]:
            raise Forbidden(
                f"token '{caller.name}' is {caller.role}: this needs {role}",
                hint=f"aether token create NAME --role {role}",
            )
        return caller

    check.__aether_requires__ = role  # type: ignore[attr-defined]
    return Depends(check)


def require_node() -> Any:
    """Return the dependency that lets in only the cluster's nodes and its bootstrap."""

    async def check(request: Request) -> NodeId:
        peer = _peer(request)
        if peer is None:
            raise Forbidden("only nodes of the cluster may ask this")
        request.state.caller = _as_caller(peer)
        return peer

    check.__aether_requires__ = "node"  # type: ignore[attr-defined]
    return Depends(check)


def _caller(request: Request) -> Caller:
    peer = _peer(request)
    caller = _as_caller(peer) if peer is not None else _token_holder(request)
    request.state.caller = caller
    return caller


def _as_caller(peer: NodeId) -> Caller:
    return Caller(f"node {peer}", Role.ADMIN)


def _peer(request: Request) -> NodeId | None:
    certificate = request.scope.get("extensions", {}).get("aether.peer")
    return node_of(certificate, get_node(request).boot.cluster)


def _token_holder(request: Request) -> Caller:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise Unauthenticated("no token given", hint="send Authorization: Bearer <token>")
    identity, secret = split_token(token)
    node = get_node(request)
    node.joined_store()
    if not node.mirror.revision:
        raise Unavailable(f"node '{node.id}' has just begun and knows no tokens yet")
    record = node.mirror.get(TokenRecord, keys.token(identity))
    if not is_secret_of(record, secret) or record is None:
        raise Unauthenticated("token not known", hint="aether token list")
    if record.expires_at is not None and record.expires_at <= node.clock.at():
        raise Unauthenticated(
            f"token '{record.name}' expired at {record.expires_at:%Y-%m-%d %H:%M} UTC",
            hint="ask an admin for: aether token create",
        )
    return Caller(record.name, record.role)
