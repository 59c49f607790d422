"""Talking to a node's API: for people (`Client`, bearer token) and for nodes (`PeerClient`, mTLS).

One function turns an answer into a result or an error. A change carries a request id, so that it
can be sent again when its answer was lost: a node that did it already answers what it answered.
"""

import json
import ssl
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx

from aether_core import certs
from aether_core.boot import Peer
from aether_core.contexts import Context
from aether_core.errors import (
    AetherError,
    Forbidden,
    NotFound,
    OutcomeUnknown,
    Unauthenticated,
    Unavailable,
    from_problem_document,
)

CONNECT_TIMEOUT_S = 3.0
# A node waits for the store for some seconds, then says so itself.
ANSWER_TIMEOUT_S = 30.0
# An upload is answered when its copies are made, for which the node allows itself five minutes.
UPLOAD_TIMEOUT_S = 330.0
# How often a change whose answer was lost is sent again before its outcome is called unknown.
REPEATS = 3
REQUEST_HEADER = "X-Aether-Request"

TIMEOUT = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
#: For answers that are no problem documents: something else than a node answered.
BY_STATUS: dict[int, type[AetherError]] = {
    kind.http_status: kind for kind in (Unauthenticated, Forbidden, NotFound, Unavailable)
}
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Client:
    """A user's connection to a cluster: any node that answers will do."""

    def __init__(self, context: Context) -> None:
        self._endpoints = list(context.endpoints)
        self._http = httpx.AsyncClient(
            verify=certs.trusting(context.ca_pem),
            headers={"Authorization": f"Bearer {context.token}"},
            timeout=TIMEOUT,
            trust_env=False,
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.aclose()

    async def get(self, path: str, **params: Any) -> Any:
        """Read. Errors: what the node answered; Unavailable when no node does."""
        wanted = {key: value for key, value in params.items() if value is not None}
        return await self._ask("GET", path, params=wanted)

    async def post(self, path: str, body: Any = None) -> Any:
        """Change something. Errors: as `get`; OutcomeUnknown when no answer came."""
        return await self._ask("POST", path, json=body)

    async def delete(self, path: str) -> Any:
        return await self._ask("DELETE", path)

    async def put_stream(
        self, path: str, chunks: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> Any:
        """Send a body that is not held in memory, once, to the first node that answers."""
        for endpoint in list(self._endpoints):
            timeout = httpx.Timeout(UPLOAD_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            try:
                response = await self._http.put(
                    endpoint + path, content=chunks, headers=headers, timeout=timeout
                )
                return result(response)
            except NOT_SENT:
                self._demote(endpoint)
            except httpx.HTTPError as error:
                raise _unknown(error, f"the node at {endpoint}") from error
        raise self._nobody()

    async def lines(self, path: str, **params: Any) -> AsyncGenerator[Any, None]:
        """Yield the JSON lines of an answer that goes on. Errors: Unavailable when it breaks."""
        wanted = {key: value for key, value in params.items() if value is not None}
        for endpoint in list(self._endpoints):
            try:
                url = endpoint + path
                async with self._http.stream("GET", url, params=wanted) as response:
                    if response.is_error:
                        await response.aread()
                        result(response)
                    async for line in response.aiter_lines():
                        if line:
                            yield json.loads(line)
                    return
            except NOT_SENT:
                self._demote(endpoint)
            except httpx.HTTPError as error:
                raise Unavailable(
                    f"the node at {endpoint} stopped answering: {_words(error)}"
                ) from error
        raise self._nobody()

    async def _ask(self, method: str, path: str, **request: Any) -> Any:
        headers = {REQUEST_HEADER: uuid.uuid4().hex}
        failure: Unavailable | None = None
        for _ in range(REPEATS):
            for endpoint in list(self._endpoints):
                try:
                    response = await self._http.request(
                        method, endpoint + path, headers=headers, **request
                    )
                    return result(response)
                except NOT_SENT:
                    pass
                except httpx.HTTPError as error:
                    lost = _unanswered if method == "GET" else _unknown
                    failure = _worse(failure, lost(error, f"the node at {endpoint}"))
                except Unavailable as error:  # This node may be cut off while another is not.
                    failure = _worse(failure, error)
                self._demote(endpoint)
            if not isinstance(failure, OutcomeUnknown):
                break  # Nobody did it: there is nothing to find out.
        raise failure or self._nobody()

    def _demote(self, endpoint: str) -> None:
        self._endpoints.remove(endpoint)
        self._endpoints.append(endpoint)

    def _nobody(self) -> Unavailable:
        return Unavailable(
            f"no node of the cluster answers: tried {', '.join(self._endpoints)}",
            hint="are the nodes running? `aether cluster list` shows what this computer made",
        )


class PeerClient:
    """A node's, or the bootstrap's, connection to other nodes."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._http = httpx.AsyncClient(verify=tls, timeout=TIMEOUT, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, peer: Peer, path: str) -> Any:
        return await self._ask("GET", peer, path)

    async def post(self, peer: Peer, path: str, body: Any) -> Any:
        return await self._ask("POST", peer, path, json=body)

    @asynccontextmanager
    async def stream(
        self, peer: Peer, path: str, *, offset: int = 0
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read bytes from `offset` on. Errors: what the node answered; Unavailable."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            url = _url(peer, path)
            async with self._http.stream("GET", url, headers=headers) as response:
                if response.is_error:
                    await response.aread()
                    result(response)
                yield response.aiter_bytes()
        except httpx.HTTPError as error:
            raise _unanswered(error, f"node '{peer.node}'") from error

    async def answers(self, url: str) -> bool:
        """Return whether anything at all answers HTTP at `url`."""
        try:
            await self._http.get(url)
        except httpx.HTTPError:
            return False
        return True

    async def _ask(self, method: str, peer: Peer, path: str, **request: Any) -> Any:
        try:
            return result(await self._http.request(method, _url(peer, path), **request))
        except httpx.HTTPError as error:
            is_certain = method == "GET" or isinstance(error, NOT_SENT)
            lost = _unanswered if is_certain else _unknown
            raise lost(error, f"node '{peer.node}'") from error


def result(response: httpx.Response) -> Any:
    """Return what a node answered. Errors: the one its problem document names, or AetherError."""
    try:
        document = response.json() if response.content else None
    except ValueError:
        document = None
        if response.is_success:
            raise AetherError(f"{response.url} answered something else than JSON") from None
    if response.is_success:
        return document
    if isinstance(document, dict) and "type" in document:
        raise from_problem_document(document)
    kind = BY_STATUS.get(response.status_code, AetherError)
    raise kind(f"{response.url} answered {response.status_code} {response.reason_phrase}".rstrip())


def path_of(*parts: str) -> str:
    """Return the path of these parts, whatever is in them."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _url(peer: Peer, path: str) -> str:
    return f"https://{peer.address}:{peer.ports.api}{path}"


def _worse(one: Unavailable | None, other: Unavailable) -> Unavailable:
    """Return what to tell: that something may have happened, rather than that nothing did."""
    return one if isinstance(one, OutcomeUnknown) else other


def _unanswered(error: httpx.HTTPError, where: str) -> Unavailable:
    return Unavailable(f"{where} does not answer: {_words(error)}")


def _unknown(error: httpx.HTTPError, where: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"no answer from {where}: {_words(error)}; it may have been done or not",
        hint="look before you repeat it: aether cluster status, aether deploy status",
    )


def _words(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__} {error}".rstrip()
