"""What was seen of the old and the new version, folded period by period into a small record.

`fold` is the only way evidence grows; it takes values and returns values, so a new leader that
reads the record goes on exactly where the last one stopped. What the evidence says is for `judge`.
"""

from dataclasses import dataclass, replace
from itertools import accumulate

from aether_core.likelihood import NO_TABLE, NO_TALLY, Tally, add_block

BLOCK_S = 60.0  # Bursts within a minute hang together; from one to the next they rarely do.
REFERENCE_REQUESTS = 100  # Of the old version, before "slow" means anything.
SPELL_BLOCKS = 7  # Of the old version, before its slowest minutes are known a little.
MIN_SPELL_REQUESTS = 5  # Fewer slow requests in a block are no slow spell.


def _bounds(first: float, last: float, factor: float) -> tuple[float, ...]:
    bounds = [first]
    while bounds[-1] < last:
        bounds.append(float(max(bounds[-1] + 1, round(bounds[-1] * factor))))
    return tuple(bounds)


#: Upper bounds of the latency buckets; one more bucket is open. Envoy measures whole ms.
LATENCY_BOUNDS_MS: tuple[float, ...] = _bounds(1.0, 60_000.0, 1.2)


@dataclass(frozen=True)
class Window:
    """What one version of a slice answered in one period. `latency`: requests per bucket."""

    requests: int = 0
    errors: int = 0
    latency: tuple[int, ...] = ()


@dataclass(frozen=True)
class Period:
    """The same seconds of both versions, summed over all nodes."""

    old: Window
    new: Window
    seconds: float


@dataclass(frozen=True)
class Strand:
    """The evidence on one kind of hit: `table` holds the blocks that ended, `open` the one not."""

    total: Tally = NO_TALLY
    open: Tally = NO_TALLY
    table: tuple[float, ...] = NO_TABLE

    def add(self, tally: Tally) -> "Strand":
        return replace(self, total=self.total + tally, open=self.open + tally)

    def close(self) -> "Strand":
        table = tuple(round(cell, 4) for cell in add_block(self.table, self.open))
        return replace(self, open=NO_TALLY, table=table)

    def table_now(self) -> tuple[float, ...]:
        return add_block(self.table, self.open)


@dataclass(frozen=True)
class Reference:
    """What is slow: the buckets above these are, by what the old version did in earlier blocks."""

    centre: int  # Half of the old version's requests are slower.
    tail: int  # At most a tenth of them is.
    far: int  # At most a hundredth.


@dataclass(frozen=True)
class Spells:
    """Blocks in which half of a version's requests were far slower than the old one's slowest."""

    blocks: int = 0
    old: int = 0
    new: int = 0


@dataclass(frozen=True)
class Evidence:
    """All that is known so far about a new version against the old one. Starts as `EMPTY`."""

    seconds: float = 0.0
    open_seconds: float = 0.0
    blocks: int = 0
    errors: Strand = Strand()
    tail: Strand = Strand()
    centre: Strand = Strand()
    far: Tally = NO_TALLY  # Of the open block.
    spells: Spells = Spells()
    reference: Reference | None = None
    latency_old: tuple[int, ...] = ()
    latency_new: tuple[int, ...] = ()


EMPTY = Evidence()


def fold(evidence: Evidence, period: Period) -> Evidence:
    """Return the evidence after one more period.

    A full block is closed by the period after it, so that it can be looked at while it is whole.
    """
    if evidence.open_seconds >= BLOCK_S:
        evidence = close_block(evidence)
    old, new = period.old, period.new
    errors = Tally(old.requests, old.errors, new.requests, new.errors)
    return replace(
        _with_latency(evidence, old.latency, new.latency),
        seconds=round(evidence.seconds + period.seconds, 3),
        open_seconds=round(evidence.open_seconds + period.seconds, 3),
        errors=evidence.errors.add(errors),
    )


def _with_latency(evidence: Evidence, old: tuple[int, ...], new: tuple[int, ...]) -> Evidence:
    grown = replace(
        evidence,
        latency_old=_sum(evidence.latency_old, old),
        latency_new=_sum(evidence.latency_new, new),
    )
    reference = evidence.reference
    if reference is None:
        # What teaches us what is slow cannot also be judged by it.
        return replace(grown, reference=_reference(grown.latency_old))
    return replace(
        grown,
        tail=evidence.tail.add(_above(reference.tail, old, new)),
        centre=evidence.centre.add(_above(reference.centre, old, new)),
        far=evidence.far + _above(reference.far, old, new),
    )


def close_block(evidence: Evidence) -> Evidence:
    """End the open block. Also to be called when shares change: within a block they are one."""
    return replace(
        evidence,
        open_seconds=0.0,
        blocks=evidence.blocks + 1,
        errors=evidence.errors.close(),
        tail=evidence.tail.close(),
        centre=evidence.centre.close(),
        far=NO_TALLY,
        spells=_count_spells(evidence),
        reference=_reference(evidence.latency_old) or evidence.reference,
    )


def _count_spells(evidence: Evidence) -> Spells:
    spells, far = evidence.spells, evidence.far
    if evidence.blocks < SPELL_BLOCKS or not far.old_requests or not far.new_requests:
        return spells
    return Spells(
        blocks=spells.blocks + 1,
        old=spells.old + _is_spell(far.old_hits, far.old_requests),
        new=spells.new + _is_spell(far.new_hits, far.new_requests),
    )


def _is_spell(hits: int, requests: int) -> bool:
    return hits >= MIN_SPELL_REQUESTS and 2 * hits >= requests


def _reference(latency: tuple[int, ...]) -> Reference | None:
    if sum(latency) < REFERENCE_REQUESTS:
        return None
    return Reference(
        centre=bucket_above(latency, 0.5),
        tail=bucket_above(latency, 0.1),
        far=bucket_above(latency, 0.01),
    )


def bucket_above(latency: tuple[int, ...], share: float) -> int:
    """Return the first bucket above which at most `share` of the requests lie."""
    total = sum(latency)
    below = accumulate(latency)
    return next(index for index, count in enumerate(below) if total - count <= share * total)


def _above(bucket: int, old: tuple[int, ...], new: tuple[int, ...]) -> Tally:
    return Tally(sum(old), sum(old[bucket + 1 :]), sum(new), sum(new[bucket + 1 :]))


def _sum(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))
