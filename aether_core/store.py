"""The only meeting point: what every process reads, watches and writes, whatever keeps it.

`store_etcd.py` keeps it in etcd. A write is one transaction; a refused one changed nothing; one
whose answer was lost raises OutcomeUnknown. `Mirror` is a process's own copy, kept by a watch.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from aether_core.model import decode, encode

T = TypeVar("T")

#: etcd takes at most 128 operations in one transaction by default.
MAX_OPERATIONS = 120


@dataclass(frozen=True)
class Entry:
    """One key. Revisions count the store's commits; `created` is when this key last began to exist."""

    key: str
    value: bytes
    created: int
    modified: int
    lease: int = 0


@dataclass(frozen=True)
class Listing:
    """All keys under a prefix as of `revision`, in key order."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True)
class Compare:
    """Holds when the key was last modified, or created, at that revision; 0: does not exist."""

    key: str
    modified: int | None = None
    created: int | None = None


@dataclass(frozen=True)
class Put:
    key: str
    value: bytes = field(repr=False)
    lease: int = 0


@dataclass(frozen=True)
class Delete:
    """Remove a key, or with `prefix` all keys that start with it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True)
class Change:
    """One change a watch saw. `entry` is None when the key was deleted."""

    key: str
    entry: Entry | None


@dataclass(frozen=True)
class Batch:
    """All changes of one or several commits up to `revision`.

    `is_snapshot`: a full listing instead, after a start or a compaction; keys not in it are gone.
    """

    changes: tuple[Change, ...]
    revision: int
    is_snapshot: bool = False


class Store(Protocol):
    """Errors of every method: NoQuorum when nothing was written; OutcomeUnknown from writes."""

    async def get(self, key: str) -> Entry | None:
        """Return the entry as of now, agreed by a majority."""
        ...

    async def list(self, prefix: str) -> Listing:
        """Return all entries under `prefix` as of now, agreed by a majority."""
        ...

    async def revision(self) -> int:
        """Return the newest committed revision, agreed by a majority."""
        ...

    async def commit(
        self, writes: Iterable[Put | Delete], *, compares: Iterable[Compare] = ()
    ) -> int | None:
        """Write all or nothing; return the new revision, or None when a comparison failed."""
        ...

    def watch(self, prefix: str) -> AsyncIterator[Batch]:
        """Yield a snapshot, then every later change without a gap, for ever."""
        ...

    async def grant(self, ttl_s: int) -> int:
        """Return a new lease: keys put with it vanish when it is not kept alive for `ttl_s`."""
        ...

    async def keep_alive(self, lease: int) -> bool:
        """Extend the lease; False when it no longer exists."""
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease and remove its keys."""
        ...


def put(key: str, value: object, *, lease: int = 0) -> Put:
    """Return the write of a model value."""
    return Put(key, encode(value), lease)


class Mirror:
    """A copy of everything under a prefix, as of `revision`; wakes those who wait for a change."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.revision = 0
        self._modified: dict[str, int] = {}  # Key (also deleted ones): revision seen last.
        self._waiters: set[asyncio.Event] = set()
        self._decoded: dict[str, tuple[int, object]] = {}

    async def follow(self, store: Store, prefix: str) -> None:
        """Keep the copy current, for ever."""
        async for batch in store.watch(prefix):
            self.apply(batch)

    def apply(self, batch: Batch) -> None:
        """Take the changes of one batch in."""
        if batch.is_snapshot:
            listed = {change.key for change in batch.changes}
            for key in self.entries.keys() - listed:
                self._take(Change(key, None), batch.revision)
        for change in batch.changes:
            self._take(change, batch.revision)
        self.revision = max(self.revision, batch.revision)
        for event in self._waiters:
            event.set()

    def _take(self, change: Change, revision: int) -> None:
        if change.entry is None:
            self.entries.pop(change.key, None)
            self._decoded.pop(change.key, None)
            self._modified[change.key] = revision
        else:
            self.entries[change.key] = change.entry
            self._modified[change.key] = change.entry.modified

    def get(self, kind: type[T], key: str) -> T | None:
        """Return the value at `key`, decoded once per revision."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        cached = self._decoded.get(key)
        if cached is not None and cached[0] == entry.modified:
            return cached[1]  # type: ignore[return-value]
        value = decode(kind, entry.value)
        self._decoded[key] = (entry.modified, value)
        return value

    def all(self, kind: type[T], prefix: str) -> list[T]:
        """Return the values of every key under `prefix`, in key order."""
        values = (self.get(kind, key) for key in sorted(self.entries) if key.startswith(prefix))
        return [value for value in values if value is not None]

    def modified(self, key: str) -> int:
        """Return the revision of the last change of `key`, also of its deletion; 0: never seen."""
        return self._modified.get(key, 0)

    def newest(self, prefixes: tuple[str, ...]) -> int:
        """Return the revision of the last change, also a deletion, under any of `prefixes`."""
        return max((r for key, r in self._modified.items() if key.startswith(prefixes)), default=0)

    async def reach(self, revision: int) -> None:
        """Wait until the copy holds everything up to `revision`."""
        with self.waiting() as changed:
            while self.revision < revision:
                await changed.wait()
                changed.clear()

    def waiting(self) -> "_Waiting":
        """Return a context whose event is set on every later change."""
        return _Waiting(self._waiters)


class _Waiting:
    def __init__(self, waiters: set[asyncio.Event]) -> None:
        self._waiters = waiters
        self._event = asyncio.Event()

    def __enter__(self) -> asyncio.Event:
        self._waiters.add(self._event)
        return self._event

    def __exit__(self, *exc_info: object) -> None:
        self._waiters.discard(self._event)
