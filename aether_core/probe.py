"""Asking an instance on this node whether it is well: one HTTP GET over loopback."""

import asyncio
import contextlib

LONGEST_STATUS_LINE = 1024


async def probe(port: int, path: str, timeout_s: float) -> str | None:
    """Return None when the answer is 2xx or 3xx, else what is wrong, in a few words."""
    try:
        async with asyncio.timeout(timeout_s):
            status = await _status(port, path)
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except ConnectionRefusedError:
        return f"nothing listens on port {port}"
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        return f"{type(error).__name__}: {error}"
    return None if 200 <= status < 400 else f"GET {path} answered {status}"


async def _status(port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LONGEST_STATUS_LINE)
    try:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        writer.write(f"{request}User-Agent: aether-health\r\n\r\n".encode())
        await writer.drain()
        line = await reader.readline()
        return int(line.split()[1]) if line.startswith(b"HTTP/") else 0
    except IndexError:
        return 0
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
