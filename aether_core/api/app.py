"""The node's HTTP API: FastAPI over TLS, OpenAPI at /v1/openapi.json.

How to add a route: a module with `router = APIRouter(prefix="/v1/<noun>")`, each function with
`Annotated[Caller, require(Role.X)]` (or `require_node()`) and `Annotated[Node, Depends(get_node)]`;
raise errors of the one tree; change things through `once.commit_once`; list the router below.
"""

import secrets
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from loguru import logger
from starlette.exceptions import HTTPException

from aether_core import __version__
from aether_core.api import artifacts, bootstrap, cluster, deployments, slices, tokens
from aether_core.api.audit import write_audit
from aether_core.errors import AetherError, ConfigError, Problem, Unavailable, to_problem_document
from aether_core.node import Node

RETRY_AFTER_S = 1
ROUTERS = (bootstrap, cluster, artifacts, deployments, slices, tokens)


def create_app(node: Node) -> FastAPI:
    """Return the application of one node."""
    app = FastAPI(
        title="Aether", version=__version__, openapi_url="/v1/openapi.json", redoc_url=None
    )
    app.state.node = node
    for module in ROUTERS:
        app.include_router(module.router)

    @app.get("/livez", tags=["health"])
    async def livez() -> dict[str, str]:
        """Answer while the agent runs. Needs no token."""
        return {"status": "alive"}

    @app.middleware("http")
    async def audit(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        await write_audit(node, request, response.status_code)
        return response

    app.add_exception_handler(AetherError, _aether_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _problem(error: AetherError, status: int | None = None) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, Unavailable) else {}
    document = to_problem_document(error)
    return JSONResponse(
        document | {"status": status or error.http_status},
        status_code=status or error.http_status,
        headers=headers,
        media_type="application/problem+json",
    )


def _aether_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AetherError)
    return _problem(error)


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = tuple(
        Problem(str(detail["loc"][0]), 0, ".".join(map(str, detail["loc"][1:])), detail["msg"])
        for detail in error.errors()
    )
    return _problem(ConfigError("the request is not valid", problems=problems))


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
    return _problem(AetherError(message), error.status_code)


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    reference = secrets.token_hex(4)
    logger.opt(exception=error).error("request failed, reference {}", reference)
    hint = f"this is a bug in aether: see reference {reference} in the node's log"
    return _problem(AetherError("internal error", hint=hint))
