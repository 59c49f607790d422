"""The only door to etcd: its JSON gateway over HTTP with mTLS.

The gateway is part of every etcd member and needs no gRPC in our processes. A watch asks for a
leader (`hasleader`), because a member that is cut off from the majority otherwise stays silent.
Sources: etcd 3.4 API reference, "gRPC gateway"; behaviour checked against 3.4.23.
"""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

import httpx
from loguru import logger

from aether_core.clock import Clock
from aether_core.errors import AetherError, NoQuorum, NotFound, OutcomeUnknown
from aether_core.store import (
    MAX_OPERATIONS,
    Batch,
    Change,
    Compare,
    Delete,
    Entry,
    Listing,
    Put,
)

READ_TIMEOUT_S = 3.0
WRITE_TIMEOUT_S = 5.0
# A watch that is silent while the store's revision moves on is stuck: asked about this often.
PROGRESS_S = 5.0
RETRY_S = 0.2
PAGE_ENTRIES = 2_000
EVERY_KEY = "AA=="  # A zero byte as both ends of a range: etcd's words for "from the first on".
REQUIRE_LEADER = {"Grpc-Metadata-hasleader": "true"}
# etcd refuses these before the write reaches the log, so nothing was written.
LEASE_GONE = "etcdserver: requested lease not found"
NOT_WRITTEN = ("etcdserver: no leader", "etcdserver: not capable", "etcdserver: too many requests")


class EtcdStore:
    """A `Store` kept by the etcd members at `endpoints`; the first that answers is used."""

    def __init__(self, endpoints: list[str], tls: ssl.SSLContext, clock: Clock) -> None:
        self._endpoints = endpoints
        self._tls = tls
        self._clock = clock
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    async def get(self, key: str) -> Entry | None:
        answer = await self._read("kv/range", {"key": _encode(key)})
        return next((_entry(kv) for kv in answer.get("kvs", [])), None)

    async def list(self, prefix: str) -> Listing:
        entries: list[Entry] = []
        revision, start = 0, _encode(prefix)
        while True:
            answer = await self._read(
                "kv/range",
                {
                    "key": start,
                    "range_end": _end_of(prefix),
                    "limit": PAGE_ENTRIES,
                    "revision": revision,
                },
            )
            revision = revision or _revision(answer)
            page = [_entry(kv) for kv in answer.get("kvs", [])]
            entries += page
            if not answer.get("more"):
                return Listing(tuple(entries), revision)
            start = _encode(page[-1].key + "\0")

    async def revision(self) -> int:
        # A linearizable read of a key that need not exist: its header says where the store is.
        return _revision(await self._read("kv/range", {"key": _encode("\1"), "keys_only": True}))

    async def commit(
        self, writes: Iterable[Put | Delete], *, compares: Iterable[Compare] = ()
    ) -> int | None:
        operations = [_operation(write) for write in writes]
        assert len(operations) <= MAX_OPERATIONS, "one transaction is too large for etcd"
        body = {"compare": [_comparison(c) for c in compares], "success": operations}
        answer = await self._write("kv/txn", body)
        return _revision(answer) if answer.get("succeeded") else None

    async def watch(self, prefix: str) -> AsyncGenerator[Batch, None]:
        revision = 0
        while True:
            try:
                if revision == 0:
                    listing = await self.list(prefix)
                    revision = listing.revision
                    changes = tuple(Change(entry.key, entry) for entry in listing.entries)
                    yield Batch(changes, revision, is_snapshot=True)
                async with aclosing(self._watch_from(prefix, revision + 1)) as batches:
                    async for batch in batches:
                        revision = batch.revision
                        yield batch
            except _Compacted:
                revision = 0  # What lies between is gone from the history: list again.
            except AetherError as error:
                logger.warning("watch from revision {} interrupted: {}", revision + 1, error)
                await self._clock.sleep(RETRY_S)

    async def grant(self, ttl_s: int) -> int:
        return int((await self._write("lease/grant", {"TTL": ttl_s}))["ID"])

    async def keep_alive(self, lease: int) -> bool:
        answer = await self._write("lease/keepalive", {"ID": str(lease)})
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    async def revoke(self, lease: int) -> None:
        await self._write("lease/revoke", {"ID": str(lease)})

    # Membership: only the bootstrap and the node lifecycle use these.

    async def members(self) -> tuple[dict[str, Any], ...]:
        """Return etcd's members: dicts with `ID`, `name`, `peerURLs`, `clientURLs`."""
        return tuple((await self._read("cluster/member/list", {}))["members"])

    async def compact(self, revision: int) -> None:
        """Forget what was before `revision`. A later compaction by somebody else is success."""
        try:
            await self._write("kv/compaction", {"revision": str(revision)})
        except _Rejected as error:
            if "compacted" not in error.message:
                raise

    async def _watch_from(self, prefix: str, revision: int) -> AsyncGenerator[Batch, None]:
        """Yield what changes under `prefix`, and empty batches for commits elsewhere.

        All keys are watched: whoever waits for a revision must hear of it whatever it wrote.
        """
        request = {
            "create_request": {
                "key": EVERY_KEY,
                "range_end": EVERY_KEY,
                "start_revision": str(revision),
            }
        }
        seen = revision - 1
        async with aclosing(self._stream("watch", request)) as lines:
            async for line in lines:
                if line is None:
                    if await self.revision() > seen:
                        raise NoQuorum("the watch is silent while the store moves on")
                elif changes := _watched(line):
                    seen = _revision(line["result"])
                    mine = tuple(change for change in changes if change.key.startswith(prefix))
                    yield Batch(mine, seen)

    async def _read(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask each endpoint in turn: repeating a read is always safe."""
        reason = "no endpoint is known"
        for endpoint in list(self._endpoints):
            try:
                return await self._post(endpoint, path, body, READ_TIMEOUT_S)
            except httpx.HTTPError as error:
                reason = f"{endpoint}: {type(error).__name__} {error}".rstrip()
            except _Rejected as error:
                reason = f"{endpoint}: {error.message}"
            self._prefer_another(endpoint)
        raise NoQuorum(
            f"the store does not answer: {reason}",
            hint="see `aether cluster status`; more than half of the core nodes must run",
        )

    async def _write(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a write to the first endpoint that accepts a connection, once."""
        reason = "no endpoint is known"
        for endpoint in list(self._endpoints):
            try:
                return await self._post(endpoint, path, body, WRITE_TIMEOUT_S)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                reason = f"{endpoint}: {type(error).__name__} {error}".rstrip()
            except _Rejected as error:
                if error.message == LEASE_GONE:
                    raise NotFound("the lease no longer exists; nothing was written") from error
                if error.is_definite:
                    raise
                if not error.message.startswith(NOT_WRITTEN):
                    raise OutcomeUnknown(f"the store did not confirm: {error.message}") from error
                reason = f"{endpoint}: {error.message}"
            except httpx.HTTPError as error:
                self._prefer_another(endpoint)
                raise OutcomeUnknown(
                    f"the store did not confirm: {type(error).__name__} {error}".rstrip()
                ) from error
            self._prefer_another(endpoint)
        raise NoQuorum(f"the store does not answer: {reason}; nothing was written")

    async def _post(
        self, endpoint: str, path: str, body: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        response = await self._client(endpoint).post(
            f"{endpoint}/v3/{path}",
            content=json.dumps(body),
            headers=REQUIRE_LEADER,
            timeout=timeout_s,
        )
        answer: dict[str, Any] = response.json() if response.content else {}
        if response.status_code != httpx.codes.OK:
            raise _Rejected(answer, response.status_code)
        return answer

    async def _stream(
        self, path: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Yield the answer's JSON lines, and None after each PROGRESS_S of silence."""
        endpoint = self._endpoints[0]
        client = self._client(endpoint)
        request = client.build_request(
            "POST",
            f"{endpoint}/v3/{path}",
            content=json.dumps(body),
            headers=REQUIRE_LEADER,
            timeout=httpx.Timeout(READ_TIMEOUT_S, read=None),
        )
        try:
            # The member answers at once that the watch exists; one that is paused says nothing.
            async with asyncio.timeout(READ_TIMEOUT_S):
                response = await client.send(request, stream=True)
            async with aclosing(_lines(response)) as lines:
                async for line in lines:
                    yield line
        except (httpx.HTTPError, TimeoutError) as error:
            self._prefer_another(endpoint)
            raise NoQuorum(f"{endpoint}: {type(error).__name__} {error}".rstrip()) from error
        raise NoQuorum("the member closed the watch")

    def _client(self, endpoint: str) -> httpx.AsyncClient:
        if endpoint not in self._clients:
            self._clients[endpoint] = httpx.AsyncClient(verify=self._tls, trust_env=False)
        return self._clients[endpoint]

    def _prefer_another(self, endpoint: str) -> None:
        """Move an endpoint that failed to the end of the list."""
        if self._endpoints[0] == endpoint:
            self._endpoints.append(self._endpoints.pop(0))


class _Compacted(Exception):
    """The history before the watch's start is gone."""


class _Rejected(AetherError):
    """etcd answered with an error."""

    def __init__(self, answer: dict[str, Any], status: int) -> None:
        error = answer.get("error", answer)
        super().__init__(str(error.get("message") if isinstance(error, dict) else error) or "?")
        # 400 to 499: the request itself is wrong (too large, no such lease, compacted).
        self.is_definite = 400 <= status < 500


async def _lines(response: httpx.Response) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Yield a response's JSON lines, and None after each PROGRESS_S of silence."""
    lines = response.aiter_lines()
    pending: asyncio.Future[str] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(lines))
            done, _ = await asyncio.wait({pending}, timeout=PROGRESS_S)
            if not done:
                yield None
                continue
            line, pending = pending.result(), None
            if line:
                yield json.loads(line)
    except StopAsyncIteration:
        return
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await response.aclose()


def _watched(line: dict[str, Any]) -> tuple[Change, ...]:
    """Return the changes in one line of a watch. Errors: _Compacted, NoQuorum when it ended."""
    if "error" in line:
        raise NoQuorum(f"the watch ended: {line['error'].get('message', line['error'])}")
    result = line.get("result", {})
    if int(result.get("compact_revision", 0)):
        raise _Compacted
    if result.get("canceled"):
        raise NoQuorum(f"the watch ended: {result.get('cancel_reason', 'no reason given')}")
    return tuple(_change(event) for event in result.get("events", []))


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    return base64.b64decode(text).decode()


def _end_of(prefix: str) -> str:
    """Return the first key after all that start with `prefix`."""
    data = prefix.encode()
    return base64.b64encode(data[:-1] + bytes([data[-1] + 1])).decode()


def _revision(answer: dict[str, Any]) -> int:
    return int(answer["header"].get("revision", 0))


def _entry(kv: dict[str, Any]) -> Entry:
    return Entry(
        key=_decode(kv["key"]),
        value=base64.b64decode(kv.get("value", "")),
        created=int(kv["create_revision"]),
        modified=int(kv["mod_revision"]),
        lease=int(kv.get("lease", 0)),
    )


def _change(event: dict[str, Any]) -> Change:
    if event.get("type") == "DELETE":
        return Change(_decode(event["kv"]["key"]), None)
    entry = _entry(event["kv"])
    return Change(entry.key, entry)


def _operation(write: Put | Delete) -> dict[str, Any]:
    if isinstance(write, Put):
        value = base64.b64encode(write.value).decode()
        body = {"key": _encode(write.key), "value": value, "lease": str(write.lease)}
        return {"request_put": body}
    body = {"key": _encode(write.key)}
    if write.prefix:
        body["range_end"] = _end_of(write.key)
    return {"request_delete_range": body}


def _comparison(compare: Compare) -> dict[str, Any]:
    if compare.created is not None:
        target, field, revision = "CREATE", "create_revision", compare.created
    else:
        assert compare.modified is not None, "a comparison needs a revision"
        target, field, revision = "MOD", "mod_revision", compare.modified
    return {
        "key": _encode(compare.key),
        "target": target,
        "result": "EQUAL",
        field: str(revision),
    }
