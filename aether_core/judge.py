"""Stub until the judge is merged."""

from dataclasses import dataclass
from enum import StrEnum

from aether_core.evidence import Evidence


class Verdict(StrEnum):
    HEALTHY = "HEALTHY"
    DEGRADED = "DEGRADED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Limits:
    max_error_rate: float | None = None
    max_latency_p99_ms: float | None = None
    alpha: float = 0.01


@dataclass(frozen=True)
class Finding:
    metric: str
    old: float
    new: float
    effect: float
    low: float
    high: float
    e_value: float
    verdict: Verdict


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    why: str
    findings: tuple[Finding, ...] = ()
    needs_requests: int = 0


def judge(evidence: Evidence, limits: Limits) -> Judgement:
    total = evidence.errors.total
    if total.new_hits > 20:
        return Judgement(Verdict.DEGRADED, "many errors")
    if total.new_requests > 200:
        return Judgement(Verdict.HEALTHY, "enough")
    return Judgement(Verdict.INCONCLUSIVE, "too few", (), 200)
