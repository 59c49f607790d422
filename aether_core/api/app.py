"""The node's HTTP API: FastAPI over TLS, OpenAPI at /v1/openapi.json.

How to add a route: a module with `router = APIRouter(prefix="/v1/<noun>")`, each function with
`Annotated[Caller, require(Role.X)]` (or `require_node()`) and `Annotated[Node, Depends(get_node)]`;
raise errors of the one tree; change things through `once.commit_once`; list the router below.
"""

import json
import secrets
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from loguru import logger
from starlette.exceptions import HTTPException

from aether_core import __version__
from aether_core.api import artifacts, bootstrap, cluster, deployments, logs, slices, tokens
from aether_core.api.audit import Audit
from aether_core.api.auth import Caller, require
from aether_core.api.limits import BodyLimit
from aether_core.errors import (
    AetherError,
    ConfigError,
    NotFound,
    Problem,
    Unauthenticated,
    Unavailable,
    to_problem_document,
)
from aether_core.model import Role
from aether_core.node import Node

RETRY_AFTER_S = 1
ROUTERS = (bootstrap, cluster, artifacts, deployments, slices, logs, tokens)


def create_app(node: Node) -> FastAPI:
    """Return the application of one node."""
    # Without FastAPI's own documentation routes: they answer everybody.
    app = FastAPI(title="Aether", version=__version__, openapi_url=None)
    app.state.node = node
    for module in ROUTERS:
        app.include_router(module.router)

    @app.get("/livez", tags=["health"])
    async def livez() -> dict[str, str]:
        """Answer while the agent runs. Needs no token."""
        return {"status": "alive"}

    @app.get("/v1/openapi.json", tags=["health"])
    async def openapi(_: Annotated[Caller, require(Role.VIEWER)]) -> dict[str, Any]:
        """This API, described for programs."""
        return app.openapi()

    app.add_middleware(BodyLimit)
    app.add_middleware(Audit, node=node)
    app.add_exception_handler(AetherError, _aether_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _problem(error: AetherError, status: int | None = None) -> Response:
    document = to_problem_document(error) | {"status": status or error.http_status}
    # As ASCII: what a caller sent and is quoted here may be no valid Unicode.
    return Response(
        json.dumps(document, default=str),
        status_code=status or error.http_status,
        headers=_headers(error),
        media_type="application/problem+json",
    )


def _headers(error: AetherError) -> dict[str, str]:
    if isinstance(error, Unavailable):
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}


def _aether_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AetherError)
    return _problem(error)


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = tuple(
        Problem(str(detail["loc"][0]), 0, ".".join(map(str, detail["loc"][1:])), detail["msg"])
        for detail in error.errors()
    )
    return _problem(ConfigError("the request is not valid", problems=problems))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
    kind = NotFound if error.status_code == NotFound.http_status else AetherError
    return _problem(kind(message), error.status_code)


def _unexpected(request: Request, error: Exception) -> Response:
    reference = secrets.token_hex(4)
    logger.opt(exception=error).error("request failed, reference {}", reference)
    hint = f"this is a bug in aether: see reference {reference} in the node's log"
    return _problem(AetherError("internal error", hint=hint))
