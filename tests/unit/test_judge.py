"""The judge by what it says: gross harm at once, small harm in time, and never on nothing."""

# ruff: noqa: S311 (seeded draws of requests are not for secrets)

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_core.evidence import EMPTY, LATENCY_BOUNDS_MS, Evidence, Period, Window, fold
from aether_core.judge import Judgement, Limits, Verdict, judge
from aether_core.model import decode, encode

NO_LIMITS = Limits()
FAST, SLOW = 10, 40  # Buckets: about 14 ms and about 7 s.


def window(requests: int, errors: int = 0, *, slow: int = 0) -> Window:
    latency = [0] * (len(LATENCY_BOUNDS_MS) + 1)
    latency[FAST], latency[SLOW] = requests - slow, slow
    return Window(requests, errors, tuple(latency))


def drawn(rng: random.Random, requests: int, error_rate: float, slow_rate: float = 0.02) -> Window:
    errors = sum(rng.random() < error_rate for _ in range(requests))
    slow = sum(rng.random() < slow_rate for _ in range(requests))
    return window(requests, errors, slow=slow)


def folded(*periods: Period) -> Evidence:
    evidence = EMPTY
    for period in periods:
        evidence = fold(evidence, period)
    return evidence


def judged(*periods: Period, limits: Limits = NO_LIMITS) -> Judgement:
    return judge(folded(*periods), limits)


@pytest.mark.parametrize(
    "period",
    [
        Period(Window(), Window(), 1.0),
        Period(window(100), Window(), 1.0),
        Period(Window(), window(100), 1.0),
        Period(window(1), window(1), 1.0),
        Period(window(20), window(20), 60.0),
    ],
    ids=["silence", "only old", "only new", "one each", "trickle"],
)
def test_little_or_no_traffic_is_inconclusive_and_says_how_much_is_missing(period: Period) -> None:
    judgement = judged(period)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.needs_requests > 0
    assert str(judgement.needs_requests) in judgement.why


def test_hours_of_silence_do_not_become_health() -> None:
    assert judged(*[Period(Window(), Window(), 60.0)] * 200).verdict is Verdict.INCONCLUSIVE


def test_equal_versions_become_healthy_with_about_the_requests_asked_for() -> None:
    asked = judged(Period(window(60), window(60), 1.0)).needs_requests
    quiet = [Period(window(60, slow=2), window(60, slow=2), 1.0)] * (4 * (asked // 60 + 2))
    judgement = judged(*quiet)
    assert judgement.verdict is Verdict.HEALTHY
    assert judgement.needs_requests == 0


def test_a_crash_loop_is_found_within_twenty_requests() -> None:
    evidence = folded(*[Period(window(10), window(0), 1.0)] * 10)
    for _ in range(20):
        evidence = fold(evidence, Period(window(1), window(1, 1), 1.0))
    assert judge(evidence, NO_LIMITS).verdict is Verdict.DEGRADED


def test_every_second_request_failing_is_found_within_dozens() -> None:
    evidence = EMPTY
    for requests in range(1, 200):
        evidence = fold(evidence, Period(window(1), window(1, requests % 2), 1.0))
        if judge(evidence, NO_LIMITS).verdict is Verdict.DEGRADED:
            break
    assert requests < 80


def test_an_outage_of_both_is_not_the_new_versions_fault() -> None:
    fine = [Period(window(20), window(20), 1.0)] * 300
    outage = [Period(window(20, 20), window(20, 20), 1.0)] * 30
    evidence = folded(*fine)
    for period in outage:
        evidence = fold(evidence, period)
        assert judge(evidence, NO_LIMITS).verdict is not Verdict.DEGRADED


def test_doubled_errors_are_found_and_explained() -> None:
    rng = random.Random(3)
    minutes = [Period(drawn(rng, 600, 0.01), drawn(rng, 600, 0.02), 60.0) for _ in range(30)]
    judgement = judged(*minutes)
    assert judgement.verdict is Verdict.DEGRADED
    finding = next(f for f in judgement.findings if f.verdict is Verdict.DEGRADED)
    assert finding.metric == "errors"
    assert 1.5 < finding.effect < 2.7
    assert finding.low < finding.effect < finding.high
    assert f"{finding.new:.2%}" in judgement.why
    assert f"{finding.old:.2%}" in judgement.why


def test_a_heavier_tail_is_found() -> None:
    rng = random.Random(4)
    minutes = [Period(drawn(rng, 600, 0, 0.02), drawn(rng, 600, 0, 0.06), 60.0) for _ in range(30)]
    judgement = judged(*minutes)
    assert judgement.verdict is Verdict.DEGRADED
    assert "slow" in judgement.why


def test_minutes_that_are_slow_as_a_whole_are_found() -> None:
    slow = Period(window(600, slow=6), window(600, slow=600), 60.0)
    fine = Period(window(600, slow=6), window(600, slow=6), 60.0)
    judgement = judged(*[fine] * 8, *[slow, fine, fine, fine, fine] * 5)
    assert judgement.verdict is Verdict.DEGRADED
    assert "far slower in 5 of" in judgement.why


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_identical_versions_are_never_degraded_in_a_seeded_sweep(share: float) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        evidence = EMPTY
        for _ in range(30):
            new = drawn(rng, round(400 * share), 0.02)
            evidence = fold(evidence, Period(drawn(rng, round(400 * (1 - share)), 0.02), new, 60))
            assert judge(evidence, NO_LIMITS).verdict is not Verdict.DEGRADED


def test_a_better_version_is_not_degraded() -> None:
    rng = random.Random(5)
    minutes = [Period(drawn(rng, 600, 0.05), drawn(rng, 600, 0.005), 60.0) for _ in range(20)]
    assert judged(*minutes).verdict is Verdict.HEALTHY


def test_limits_hold_whatever_the_old_version_does() -> None:
    bad_as_ever = [Period(window(100, 10, slow=5), window(100, 10, slow=5), 1.0)] * 30
    assert judged(*bad_as_ever).verdict is Verdict.HEALTHY
    for limits in (Limits(max_error_rate=0.05), Limits(max_latency_p99_ms=500)):
        judgement = judged(*bad_as_ever, limits=limits)
        assert judgement.verdict is Verdict.DEGRADED
        assert "above" in judgement.why
    kept = Limits(max_error_rate=0.2, max_latency_p99_ms=20_000)
    assert judged(*bad_as_ever, limits=kept).verdict is Verdict.HEALTHY


def test_a_limit_passed_by_chance_is_no_alarm() -> None:
    few = Period(window(10), window(10, 1), 1.0)
    assert judged(few, limits=Limits(max_error_rate=0.05)).verdict is Verdict.INCONCLUSIVE


counts = st.integers(0, 500)
windows = st.builds(
    lambda requests, errors, slow: window(
        requests, min(errors, requests), slow=min(slow, requests)
    ),
    counts, counts, counts,
)  # fmt: skip
some_periods = st.lists(st.builds(Period, windows, windows, st.floats(0.5, 60.0)), max_size=12)
limits_given = st.builds(
    Limits,
    st.none() | st.floats(0.0, 1.0),
    st.none() | st.floats(1.0, 1e5),
)


@settings(deadline=None, max_examples=60)
@given(some_periods, limits_given)
def test_any_periods_can_be_folded_stored_and_judged(periods: list[Period], limits: Limits) -> None:
    evidence = folded(*periods)
    again = decode(Evidence, encode(evidence))
    assert again == evidence == folded(*periods)
    judgement = judge(evidence, limits)
    assert judgement == judge(again, limits)
    assert decode(Judgement, encode(judgement)) == judgement
    assert (judgement.needs_requests > 0) == (judgement.verdict is Verdict.INCONCLUSIVE)


@settings(deadline=None, max_examples=30)
@given(some_periods, some_periods)
def test_a_new_leader_goes_on_where_the_last_one_stopped(
    before: list[Period], after: list[Period]
) -> None:
    stored = encode(folded(*before))
    evidence = decode(Evidence, stored)
    for period in after:
        judge(evidence, NO_LIMITS)  # A look changes nothing.
        evidence = fold(evidence, period)
    assert evidence == folded(*before, *after)


def test_the_record_stays_small() -> None:
    rng = random.Random(6)
    minutes = [Period(drawn(rng, 600, 0.1), drawn(rng, 600, 0.2), 60.0) for _ in range(120)]
    assert len(encode(folded(*minutes))) < 6000
