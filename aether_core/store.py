"""The only meeting point: what every process reads, watches and writes, whatever keeps it.

`store_etcd.py` keeps it in etcd. A write is one transaction; a refused one changed nothing; one
whose answer was lost raises OutcomeUnknown. `Mirror` is a process's own copy, kept by a watch.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

from loguru import logger

from aether_core import keys
from aether_core.errors import IntegrityError
from aether_core.model import decode, encode

T = TypeVar("T")

#: etcd takes at most 128 operations in one transaction by default.
MAX_OPERATIONS = 120


@dataclass(frozen=True)
class Entry:
    """One key. Revisions count commits; `created` is the one that last made this key."""

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
        """Write all or nothing; return the new revision, or None when a comparison failed.

        Errors: also NotFound when a lease that is put with no longer exists.
        """
        ...

    def watch(self, prefix: str) -> AsyncGenerator[Batch, None]:
        """Yield a snapshot of what is under `prefix`, then every later change without a gap, for
        ever. A commit that changes nothing there is an empty batch: revisions are of the store."""
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
    """A copy of everything in the store, as of `revision`; wakes those who wait for a change."""

    def __init__(self) -> None:
        self.revision = 0
        self._families: dict[str, dict[str, Entry]] = {}
        self._newest: dict[str, int] = {}  # Family: revision of its last change.
        self._decoded: dict[str, tuple[int, object]] = {}
        # Prefix and kind: `all` as it was, until something in the family changes.
        self._listed: dict[str, dict[tuple[str, object], list[object]]] = {}
        self._waiters: dict[asyncio.Event, None] = {}  # In order, so that a simulation repeats.

    async def follow(self, store: Store, prefix: str) -> None:
        """Keep the copy current, for ever."""
        async with aclosing(store.watch(prefix)) as batches:
            async for batch in batches:
                self.apply(batch)

    def apply(self, batch: Batch) -> None:
        """Take the changes of one batch in."""
        if batch.is_snapshot:
            listed = {change.key for change in batch.changes}
            held = {key for entries in self._families.values() for key in entries}
            for key in held - listed:
                self._take(Change(key, None), batch.revision)
        for change in batch.changes:
            self._take(change, batch.revision)
        self.revision = max(self.revision, batch.revision)
        for event in self._waiters:
            event.set()

    def _take(self, change: Change, revision: int) -> None:
        family = keys.family(change.key)
        entries = self._families.setdefault(family, {})
        self._listed.pop(family, None)
        if change.entry is None:
            entries.pop(change.key, None)
            self._decoded.pop(change.key, None)
        else:
            entries[change.key] = change.entry
            revision = change.entry.modified
        self._newest[family] = max(revision, self._newest.get(family, 0))

    def entry(self, key: str) -> Entry | None:
        """Return the key as it was last seen."""
        return self._families.get(keys.family(key), {}).get(key)

    def under(self, prefix: str) -> list[Entry]:
        """Return the entries under `prefix`, in key order."""
        family = self._families.get(keys.family(prefix), {})
        return [entry for key, entry in sorted(family.items()) if key.startswith(prefix)]

    def modified(self, key: str) -> int:
        """Return the revision that last wrote the key; 0: it does not exist."""
        entry = self.entry(key)
        return entry.modified if entry else 0

    def get(self, kind: type[T], key: str) -> T | None:
        """Return the value at `key`. Errors: IntegrityError when it is not a `kind`."""
        entry = self.entry(key)
        return None if entry is None else self._value(kind, entry)

    def all(self, kind: type[T], prefix: str) -> list[T]:
        """Return the values of every key under `prefix`, in key order.

        A value that is not a `kind` is left out and logged: one bad record must not stop the rest.
        """
        listed = self._listed.setdefault(keys.family(prefix), {})
        if (prefix, kind) not in listed:
            listed[prefix, kind] = list(self._readable(kind, prefix))
        return cast(list[T], listed[prefix, kind]).copy()

    def _readable(self, kind: type[T], prefix: str) -> Iterator[T]:
        for entry in self.under(prefix):
            try:
                yield self._value(kind, entry)
            except IntegrityError as error:
                logger.error("left out '{}': {}", entry.key, error)

    def _value(self, kind: type[T], entry: Entry) -> T:
        cached = self._decoded.get(entry.key)
        if cached is not None and cached[0] == entry.modified:
            return cast(T, cached[1])
        value = decode(kind, entry.value)
        self._decoded[entry.key] = (entry.modified, value)
        return value

    def newest(self, *prefixes: str) -> int:
        """Return the revision of the last change or deletion in the families of `prefixes`."""
        return max(self._newest.get(keys.family(prefix), 0) for prefix in prefixes)

    async def reach(self, revision: int) -> None:
        """Wait until the copy holds everything up to `revision`."""
        with self.watching() as changed:
            while self.revision < revision:
                await changed.wait()
                changed.clear()

    @contextmanager
    def watching(self) -> Iterator[asyncio.Event]:
        """Yield an event that is set on every later change; whoever waits clears it."""
        event = asyncio.Event()
        self._waiters[event] = None
        try:
            yield event
        finally:
            del self._waiters[event]
