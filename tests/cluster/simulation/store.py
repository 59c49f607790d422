"""A `Store` in memory that keeps etcd's rules: one revision a commit, compare-and-set, leases."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field

from aether_core.errors import NotFound
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


@dataclass(frozen=True)
class Commit:
    """One transaction that was carried out, and by whom. A lease's end is nobody's."""

    author: str
    revision: int
    changes: tuple[Change, ...]
    compares: tuple[Compare, ...]


@dataclass
class _Lease:
    ttl_s: int
    end: asyncio.TimerHandle
    keys: set[str] = field(default_factory=set)


class MemoryStore:
    """Every call acts at once; `link.py` puts a network before it. `on_commit` hears of all."""

    def __init__(self, on_commit: Callable[[Commit], None]) -> None:
        self._on_commit = on_commit
        self._entries: dict[str, Entry] = {}
        self._history: list[Batch] = [Batch((), 1)]
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 1
        self._watchers: dict[int, asyncio.Event] = {}

    def revision(self) -> int:
        return self._history[-1].revision

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def listing(self, prefix: str) -> Listing:
        entries = [e for key, e in sorted(self._entries.items()) if key.startswith(prefix)]
        return Listing(tuple(entries), self.revision())

    def commit(
        self, author: str, writes: Iterable[Put | Delete], compares: Iterable[Compare]
    ) -> int | None:
        """Write all or nothing; None: a comparison failed. Errors: NotFound for a lease."""
        writes, compares = tuple(writes), tuple(compares)
        _check_size(writes, compares)
        if not all(self._holds(compare) for compare in compares):
            return None
        for write in writes:
            if isinstance(write, Put) and write.lease and write.lease not in self._leases:
                raise NotFound(f"lease {write.lease} no longer exists")
        revision = self.revision() + 1
        changes = tuple(change for write in writes for change in self._changes(write, revision))
        return self._carry_out(author, changes, compares)

    def grant(self, ttl_s: int) -> int:
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        self._leases[lease] = _Lease(ttl_s, self._end_later(lease, ttl_s))
        return lease

    def keep_alive(self, lease: int) -> bool:
        held = self._leases.get(lease)
        if held is None:
            return False
        held.end.cancel()
        held.end = self._end_later(lease, held.ttl_s)
        return True

    def revoke(self, lease: int) -> None:
        """End the lease and remove its keys."""
        held = self._leases.pop(lease, None)
        if held is None:
            return
        held.end.cancel()
        gone = [Change(key, None) for key in sorted(held.keys) if key in self._entries]
        self._carry_out("", tuple(gone), ())

    async def watch(self, prefix: str) -> AsyncGenerator[Batch, None]:
        """Yield what is under `prefix`, then every later commit, for ever."""
        listing, position = self.listing(prefix), len(self._history)
        news = asyncio.Event()
        number = max(self._watchers, default=0) + 1
        self._watchers[number] = news
        try:
            changes = tuple(Change(entry.key, entry) for entry in listing.entries)
            yield Batch(changes, listing.revision, is_snapshot=True)
            while True:
                news.clear()
                for batch in self._history[position:]:
                    position += 1
                    mine = tuple(c for c in batch.changes if c.key.startswith(prefix))
                    yield Batch(mine, batch.revision)
                if position == len(self._history):
                    await news.wait()
        finally:
            del self._watchers[number]

    def _holds(self, compare: Compare) -> bool:
        entry = self._entries.get(compare.key)
        if compare.created is not None:
            return compare.created == (entry.created if entry else 0)
        return compare.modified == (entry.modified if entry else 0)

    def _changes(self, write: Put | Delete, revision: int) -> list[Change]:
        if isinstance(write, Put):
            before = self._entries.get(write.key)
            created = before.created if before else revision
            entry = Entry(write.key, write.value, created, revision, write.lease)
            return [Change(write.key, entry)]
        if write.prefix:
            return [Change(key, None) for key in sorted(self._entries) if key.startswith(write.key)]
        return [Change(write.key, None)] if write.key in self._entries else []

    def _carry_out(
        self, author: str, changes: tuple[Change, ...], compares: tuple[Compare, ...]
    ) -> int:
        if not changes:
            return self.revision()  # What changes nothing has no revision of its own.
        revision = self.revision() + 1
        for change in changes:
            before = self._entries.pop(change.key, None)
            if before is not None and before.lease in self._leases:
                self._leases[before.lease].keys.discard(change.key)
            if change.entry is not None:
                self._entries[change.key] = change.entry
                if change.entry.lease:
                    self._leases[change.entry.lease].keys.add(change.key)
        self._history.append(Batch(changes, revision))
        for news in self._watchers.values():
            news.set()
        self._on_commit(Commit(author, revision, changes, compares))
        return revision

    def _end_later(self, lease: int, ttl_s: int) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(ttl_s, self.revoke, lease)


def _check_size(writes: tuple[Put | Delete, ...], compares: tuple[Compare, ...]) -> None:
    """Hold the caller to etcd's rules for one transaction."""
    assert max(len(writes), len(compares)) <= MAX_OPERATIONS, "etcd refuses so many operations"
    put = [write.key for write in writes if isinstance(write, Put)]
    deleted = [write for write in writes if isinstance(write, Delete)]
    assert len(put) == len(set(put)), f"etcd refuses a key that is put twice: {sorted(put)}"
    for key in put:
        for delete in deleted:
            is_hit = key.startswith(delete.key) if delete.prefix else key == delete.key
            assert not is_hit, f"etcd refuses a key that is put and deleted: {key}"
