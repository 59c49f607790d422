"""The judge: is the new version as healthy as the old one was over the same seconds?

It may be asked every second, since what it computes are winnings of bets that a healthy version
does not lose: the chance that one is ever called DEGRADED is held to `alpha`. Silence is no
health: HEALTHY needs enough requests to rule out the harm in ERRORS, TAIL and CENTRE. What is
proved and what is measured of this stands in docs/judge.md.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil, exp, log, sqrt

from aether_core.evidence import LATENCY_BOUNDS_MS, Evidence, Strand
from aether_core.likelihood import (
    ERROR_PRIOR,
    LATENCY_PRIOR,
    NO_TABLE,
    Prior,
    Tally,
    add_block,
    log_e_above,
    log_e_rare,
    log_e_value,
    ratio_bounds,
    upper_rate,
)


class Verdict(StrEnum):
    HEALTHY = "HEALTHY"
    DEGRADED = "DEGRADED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Limits:
    """What the new version may do at most, whatever the old one does, and how sure to be."""

    max_error_rate: float | None = None
    max_latency_p99_ms: float | None = None
    alpha: float = 0.01  # Chance, per deployment, to call a healthy version DEGRADED.
    beta: float = 0.05  # Chance, per metric, to call a version with tolerated harm HEALTHY.


@dataclass(frozen=True)
class Finding:
    """One metric: the shares of requests it hit, and their ratio with its interval."""

    metric: str
    old: float
    new: float
    effect: float
    low: float
    high: float
    e_value: float  # The bet's winnings; it takes 1 / (its part of alpha) to be DEGRADED.
    verdict: Verdict
    why: str
    needs_requests: int = 0


@dataclass(frozen=True)
class Judgement:
    """The verdict, in words with numbers, and about how many more requests it would need."""

    verdict: Verdict
    why: str
    findings: tuple[Finding, ...]
    needs_requests: int


@dataclass(frozen=True)
class Metric:
    """How one kind of hit is judged.

    Less than `least_ratio` is not worth a rollback however sure it is. To be HEALTHY, a share of
    hits `tolerated_ratio` times the old one's, or larger by `tolerated_rise`, must be ruled out.
    """

    name: str
    prior: Prior
    weight: float  # Its part of alpha.
    least_ratio: float
    tolerated_ratio: float
    tolerated_rise: float


ERRORS = Metric("errors", ERROR_PRIOR, 0.88, 1.25, 2.0, 0.01)
TAIL = Metric("slow requests", LATENCY_PRIOR, 0.01, 1.25, 2.0, 0.05)
CENTRE = Metric("slower than the old median", LATENCY_PRIOR, 0.01, 1.2, 1.5, 0.25)
OUTBURST_WEIGHT = 0.02
SPELLS_WEIGHT = 0.05
CALM_BLOCKS = 900.0  # Until it shows more, a healthy version has a slow spell in 15 hours.

MOST_E = 1e12  # More is no surer, and has to fit into a record.


def judge(evidence: Evidence, limits: Limits) -> Judgement:
    """Say what the evidence allows to say now."""
    strands = (
        _compare(ERRORS, evidence.errors, limits),
        _compare(TAIL, evidence.tail, limits),
        _compare(CENTRE, evidence.centre, limits),
    )
    alarms = (
        _outburst(evidence, limits),
        _spells(evidence, limits),
        _error_limit(evidence, limits),
        _latency_limit(evidence, limits),
    )
    findings = (*strands, *(alarm for alarm in alarms if alarm))
    return _sum_up(findings, evidence.errors.total)


def _sum_up(findings: tuple[Finding, ...], total: Tally) -> Judgement:
    degraded = [finding for finding in findings if finding.verdict is Verdict.DEGRADED]
    open_ones = [finding for finding in findings if finding.verdict is Verdict.INCONCLUSIVE]
    if degraded:
        return Judgement(Verdict.DEGRADED, "; ".join(f.why for f in degraded), findings, 0)
    if open_ones:
        needs = max(finding.needs_requests for finding in open_ones)
        why = "; ".join(finding.why for finding in open_ones)
        return Judgement(
            Verdict.INCONCLUSIVE,
            f"about {needs} more requests to the new version needed: {why}",
            findings,
            needs,
        )
    why = "; ".join(finding.why for finding in findings)
    return Judgement(Verdict.HEALTHY, f"{total.new_requests} requests: {why}", findings, 0)


def _compare(metric: Metric, strand: Strand, limits: Limits) -> Finding:
    """Judge one kind of hit of the new version against the old one's."""
    total = strand.total
    table = strand.table_now()
    low, high = ratio_bounds(table, metric.prior, limits.beta)
    old = _rate(total.old_hits, total.old_requests)
    new = _rate(total.new_hits, total.new_requests)
    finding = Finding(
        metric.name, old, new, _ratio(total), low, high, _e(log_e_value(table, metric.prior)),
        Verdict.INCONCLUSIVE, f"{metric.name}: {_percents(total)}",
    )  # fmt: skip
    alarmed = finding.e_value >= 1 / (metric.weight * limits.alpha)
    if alarmed and finding.effect >= metric.least_ratio:
        return replace(finding, verdict=Verdict.DEGRADED, why=f"{finding.why}, {_sure(finding)}")
    if _is_harm_ruled_out(metric, total, high, limits):
        return replace(finding, verdict=Verdict.HEALTHY)
    return replace(finding, needs_requests=_needs(metric, total, limits))


def _is_harm_ruled_out(metric: Metric, total: Tally, high: float, limits: Limits) -> bool:
    if not total.new_requests or not total.old_requests:
        return False
    if high <= metric.tolerated_ratio:
        return True
    new_high = upper_rate(total.new_hits, total.new_requests, limits.beta)
    # The old rate less its standard error: one lucky hit of few requests must excuse nothing.
    old_low = (total.old_hits - sqrt(total.old_hits)) / total.old_requests
    return new_high <= old_low + metric.tolerated_rise


def _needs(metric: Metric, total: Tally, limits: Limits) -> int:
    """Estimate how many more requests rule the tolerated harm out, if there is none.

    Each hit tells its version: with harm the chance that it is the new one's would be larger, and
    the mean log-likelihood ratio per hit is the information it carries. Without hits the rise has
    to be ruled out instead, by requests that are none.
    """
    certainty = log(1 / limits.beta) + 3  # The three pays for not knowing the alternative.
    by_rise = certainty / metric.tolerated_rise
    requests = total.old_requests + total.new_requests
    new_part = (total.new_requests + 1) / (requests + 2)
    harmed = metric.tolerated_ratio * new_part
    harmed_part = harmed / (harmed + 1 - new_part)
    per_hit = new_part * log(new_part / harmed_part)
    per_hit += (1 - new_part) * log((1 - new_part) / (1 - harmed_part))
    hits_per_request = (total.old_hits + total.new_hits + 1) / (requests + 2)
    by_ratio = new_part * certainty / (per_hit * hits_per_request)
    # Once past the estimate, luck was against it: as much as a tenth of what was seen, again.
    at_least = 1 + total.new_requests // 10
    return max(at_least, ceil(min(by_rise, by_ratio)) - total.new_requests)


def _outburst(evidence: Evidence, limits: Limits) -> Finding | None:
    """Look for errors in the open block beyond any burst: at most dozens of requests old.

    Both bets must win: on a rate no burst of the old version comes near, and on the new version
    having more than its part, which an outage of something both depend on does not show.
    """
    block, total = evidence.errors.open, evidence.errors.total
    usual = (total.old_hits + 1) / (total.old_requests + 20)
    cap = 0.1 + 8 * usual  # A burst of gamma shape 1: less than once in 7,000 minutes.
    requests = block.old_requests + block.new_requests
    if not requests or cap >= 1:
        return None
    beyond = log_e_above(block.new_hits, block.new_requests, cap)
    part = block.new_requests / requests
    unfair = log_e_above(block.new_hits, block.new_hits + block.old_hits, part)
    # One bet per block, the stakes of all blocks adding up to one.
    stake = 1 / ((evidence.blocks + 1) * (evidence.blocks + 2))
    e_value = _e(min(beyond, unfair) + log(stake))
    if e_value < 1 / (OUTBURST_WEIGHT * limits.alpha):
        return None
    why = f"errors broke out: {block.new_hits} of the last {block.new_requests} requests failed"
    return _alarm("error outburst", ERROR_PRIOR, block, e_value, why, limits)


def _spells(evidence: Evidence, limits: Limits) -> Finding | None:
    """Look for whole blocks in which the new version was far slower than the old one ever is."""
    spells = evidence.spells
    e_value = _e(log_e_rare(spells.old, spells.new, spells.blocks, CALM_BLOCKS))
    if e_value < 1 / (SPELLS_WEIGHT * limits.alpha):
        return None
    why = f"far slower in {spells.new} of {spells.blocks} minutes, the old version in {spells.old}"
    blocks = Tally(spells.blocks, spells.old, spells.blocks, spells.new)
    return _alarm("slow spells", LATENCY_PRIOR, blocks, e_value, why, limits)


def _alarm(
    metric: str, prior: Prior, tally: Tally, e_value: float, why: str, limits: Limits
) -> Finding:
    low, high = ratio_bounds(add_block(NO_TABLE, tally), prior, limits.beta)
    old = _rate(tally.old_hits, tally.old_requests)
    new = _rate(tally.new_hits, tally.new_requests)
    return Finding(metric, old, new, _ratio(tally), low, high, e_value, Verdict.DEGRADED, why)


def _error_limit(evidence: Evidence, limits: Limits) -> Finding | None:
    if limits.max_error_rate is None:
        return None
    total = evidence.errors.total
    name = f"errors above {limits.max_error_rate:.2%}"
    return _above_limit(name, total.new_hits, total.new_requests, limits.max_error_rate, limits)


def _latency_limit(evidence: Evidence, limits: Limits) -> Finding | None:
    """Judge whether more than one in a hundred requests is slower than the limit.

    A limit inside a bucket counts as the bucket's upper bound.
    """
    if limits.max_latency_p99_ms is None:
        return None
    over = sum(
        count
        for bound, count in zip((0.0, *LATENCY_BOUNDS_MS), evidence.latency_new, strict=False)
        if bound >= limits.max_latency_p99_ms
    )
    name = f"p99 latency above {limits.max_latency_p99_ms:g} ms"
    return _above_limit(name, over, sum(evidence.latency_new), 0.01, limits)


def _above_limit(name: str, hits: int, requests: int, limit: float, limits: Limits) -> Finding:
    """Judge the new version alone: DEGRADED when its share of hits is surely above `limit`."""
    rate, limit = _rate(hits, requests), max(limit, 1e-6)  # "None at all" is one in a million.
    high = upper_rate(hits, requests, limits.beta)
    e_value = _e(log_e_above(hits, requests, limit))
    is_above = e_value >= 1 / limits.alpha and rate > limit
    return Finding(
        name, limit, rate, rate / limit, 0.0, high / limit,
        e_value, Verdict.DEGRADED if is_above else Verdict.HEALTHY,
        f"{name}: {hits} of {requests} requests" if is_above else f"not {name}",
    )  # fmt: skip


def _rate(hits: int, requests: int) -> float:
    return hits / requests if requests else 0.0


def _ratio(total: Tally) -> float:
    """Return how many times the old version's share of hits the new one's is; never infinite."""
    if not total.old_requests or not total.new_requests:
        return 1.0
    old_hits = total.old_hits or 0.5
    return (total.new_hits / total.new_requests) / (old_hits / total.old_requests)


def _percents(total: Tally) -> str:
    if not total.old_requests or not total.new_requests:
        missing = "new" if total.old_requests else "old"
        return f"nothing of the {missing} version to compare yet"
    old = _rate(total.old_hits, total.old_requests)
    new = _rate(total.new_hits, total.new_requests)
    return f"{new:.2%} of {total.new_requests} against {old:.2%} of {total.old_requests}"


def _sure(finding: Finding) -> str:
    return f"{finding.effect:.1f} times as many ({finding.low:.1f} to {finding.high:.1f})"


def _e(log_e: float) -> float:
    return min(MOST_E, exp(min(log_e, 50.0)))
