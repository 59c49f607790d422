"""The shop's front: an ASGI application without a framework. Served by uvicorn.

It answers every request with who it is and what `catalog` said, which it asks through the mesh. It
passes on who the visitor is: in an A/B test of both, `catalog` then serves him the same variant.
"""

import asyncio
import json
import os
import signal
from urllib.parse import urlsplit

VISITOR = (b"x-user", b"x-variant")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await _lifespan(receive, send)
    path, query = scope["path"], scope["query_string"].decode()
    if path == "/health":
        return await _answer(send, 200, {"status": "ok"})
    if path == "/crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if path == "/slow":
        await asyncio.sleep(float(query or 1))
    visitor = [header for header in scope["headers"] if header[0] in VISITOR]
    me = {name: os.environ[f"AETHER_{name.upper()}"] for name in ("slice", "version", "instance")}
    return await _answer(send, 200, me | {"catalog": await _ask_catalog(visitor)})


async def _ask_catalog(visitor):
    """Ask another slice by its name, through the node's own proxy."""
    mesh = urlsplit(os.environ["AETHER_MESH_URL"])
    try:
        reader, writer = await asyncio.open_connection(mesh.hostname, mesh.port)
        lines = [b"GET / HTTP/1.1", b"Host: catalog.aether", b"Connection: close"]
        lines += [b"%s: %s" % header for header in visitor]
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return json.loads(body) if b" 200 " in head.splitlines()[0] else None
    except (OSError, ValueError):
        return None


async def _answer(send, status, document):
    body = json.dumps(document).encode() + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
