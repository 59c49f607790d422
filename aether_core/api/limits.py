"""How much a caller may send before anybody looks at it. Plain ASGI; artifacts stream past it."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Bodies are read whole before the caller is known. The store takes 1.5 MiB in one transaction, and
# a deployment holds its blueprint about twice.
LONGEST_BODY_BYTES = 512 * 1024
STREAMED = ("PUT", "/v1/artifacts/")


class BodyLimit:
    """Ends requests whose body is too long while it still comes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, prefix = STREAMED
        if scope["type"] != "http" or (
            scope["method"] == method and scope["path"].startswith(prefix)
        ):
            await self._app(scope, receive, send)
            return
        length_bytes = 0

        async def counted() -> Message:
            nonlocal length_bytes
            message = await receive()
            length_bytes += len(message.get("body", b""))
            if length_bytes > LONGEST_BODY_BYTES:
                raise HTTPException(413, f"the body is longer than {LONGEST_BODY_BYTES} bytes")
            return message

        await self._app(scope, counted, send)
