"""How a deployment goes on: every strategy's path, every way back, every wait's end."""

from dataclasses import replace
from datetime import timedelta

import pytest

from aether_core.deployment import Ask, Deployment
from aether_core.drivers import SliceChange
from aether_core.judge import Limits, Verdict
from aether_core.model import DeploymentState, FleetId
from aether_core.rollout import FALSE_ALARM, limits_of, step
from tests.unit.fleets import change, fleet
from tests.unit.rollouts import DEADLINE_S, Play, deployment

S = DeploymentState
OLD, NEW = FleetId("web@1"), FleetId("web@2")
BY_HEADER = {"context": {"header": "x-user"}}
END = "COMPLETED -active/shop +blueprints/shop"
BACK = ["... web@2=0", "ROLLED_BACK -active/shop"]


def canary(*changes: SliceChange, **options: object) -> Deployment:
    wanted = {"stages": [10, 100], "stage_s": 60, "stage_deadline_s": 600} | options
    return deployment("canary", *(changes or (change(),)), **wanted)


# Forward


def test_immediate_replaces_all_at_once() -> None:
    play = Play(deployment("immediate", change()))
    assert play.go() == [
        "DEPLOYING web@2=3",
        "DEPLOYED",
        "ROUTING 100%web@2",
        "DRAINING web@1=0",
        END,
    ]


def test_what_is_new_what_stays_and_what_goes_in_one_deployment() -> None:
    changes = (
        SliceChange("new", None, fleet("1", 2, name="new")),
        SliceChange("same", fleet("1", 2, name="same"), fleet("1", 4, name="same")),
        SliceChange("gone", fleet("1", 2, name="gone"), None),
    )
    play = Play(deployment("immediate", *changes))
    assert play.go() == [
        "DEPLOYING new@1=2 same@1=4",
        "DEPLOYED",
        "ROUTING 100%new@1 100%same@1",
        "DRAINING gone@1=0",
        f"{END} -slices/gone",
    ]


def test_a_removal_takes_the_routes_first_and_forgets_the_blueprint() -> None:
    gone = SliceChange("web", fleet("1", 2), None)
    removal = replace(deployment("immediate", gone), stages=(), document=None)
    assert Play(removal).go() == [
        "ROUTING",
        "DRAINING web@1=0",
        "COMPLETED -active/shop -blueprints/shop -slices/web",
    ]


def test_a_first_deployment_has_nothing_to_drain() -> None:
    play = Play(deployment("immediate", SliceChange("web", None, fleet("1", 2))))
    assert play.go() == ["DEPLOYING web@1=2", "DEPLOYED", "ROUTING 100%web@1", "DRAINING", END]
    assert play.why == "nothing had to be replaced"


def test_rolling_replaces_one_by_one() -> None:
    assert Play(deployment("rolling", change())).go() == [
        "DEPLOYING web@2=1",
        "DEPLOYED",
        "ROUTING 66.67%web@1|33.33%web@2",
        "PROMOTING web@1=2",
        "DEPLOYING web@2=2",
        "DEPLOYED",
        "ROUTING 33.33%web@1|66.67%web@2",
        "PROMOTING web@1=1",
        "DEPLOYING web@2=3",
        "DEPLOYED",
        "ROUTING 100%web@2",
        "DRAINING web@1=0",
        END,
    ]


def test_rolling_without_surge_stops_before_it_starts() -> None:
    assert Play(deployment("rolling", change(2), max_surge=0, max_unavailable=1)).go() == [
        "DEPLOYING web@2=0",
        "DEPLOYED",
        "ROUTING 100%web@1",
        "PROMOTING web@1=1",
        "DEPLOYING web@2=1",
        "DEPLOYED",
        "ROUTING 100%web@2",
        "PROMOTING web@1=0",
        "DEPLOYING web@2=2",
        "DEPLOYED",
        "ROUTING 100%web@2",
        "DRAINING",
        END,
    ]


def test_canary_moves_all_slices_at_once_and_waits_for_the_verdict_on_each() -> None:
    play = Play(canary(change(), change(name="api")))
    assert play.go() == [
        "DEPLOYING web@2=1 api@2=1",
        "DEPLOYED",
        "ROUTING 90%api@1|10%api@2 90%web@1|10%web@2",
        "PROMOTING",
    ]
    play.judge(web=Verdict.HEALTHY, api=Verdict.HEALTHY)
    assert play.wait(59) == [], "a verdict is not enough before its time"
    play.judge(web=Verdict.HEALTHY, api=Verdict.INCONCLUSIVE)
    assert play.wait(2) == [], "time is not enough without a verdict"
    play.judge(web=Verdict.HEALTHY, api=Verdict.HEALTHY)
    assert play.go() == [
        "DEPLOYING web@2=3 api@2=3",
        "DEPLOYED",
        "ROUTING 100%api@2 100%web@2",
        "PROMOTING",
    ]
    assert play.deployment.history[-4].why == "HEALTHY: web; api"
    assert play.deployment.history[-4].inputs["api"]["verdict"] == "HEALTHY"
    assert play.wait(59) == [], "the old version stays warm"
    assert play.wait(1) == ["DRAINING web@1=0 api@1=0", END]


def test_blue_green_keeps_both_until_somebody_completes() -> None:
    play = Play(deployment("blue_green", change()))
    assert play.go() == ["DEPLOYING web@2=3", "DEPLOYED", "ROUTING 100%web@2", "PROMOTING"]
    assert play.wait(3_600) == []
    play.ask(Ask.COMPLETE)
    assert play.go() == ["DRAINING web@1=0", END]


def test_ab_test_runs_until_there_is_a_winner() -> None:
    play = Play(deployment("ab_test", change(), **BY_HEADER))
    play.go()
    play.judge(web=Verdict.DEGRADED)
    assert play.wait(3_600) == [], "a worse variant is what the test is to find out"
    assert play.routes.variants["web"].names == {OLD: "A", NEW: "B"}
    play.ask(Ask.COMPLETE)
    assert play.go() == ["DEPLOYING web@2=3", "DEPLOYED", "ROUTING 100%web@2", "DRAINING web@1=0",
                         END]  # fmt: skip
    assert not play.routes.variants


# Asks


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (Ask.PROMOTE, "ROUTING 75%web@1|25%web@2"),
        (Ask.COMPLETE, "ROUTING 100%web@2"),
    ],
)
def test_an_ask_goes_on_without_a_verdict(ask: Ask, expected: str) -> None:
    play = Play(canary(stages=[10, 25, 100]))
    play.go()
    play.ask(ask)
    assert play.go()[2] == expected
    assert play.deployment.asking is None
    assert "asked for by bob" in [move.why for move in play.deployment.history]


def test_complete_ends_no_deployment_whose_new_fleet_is_not_whole() -> None:
    rolling = deployment("rolling", change(3), max_surge=0, max_unavailable=1, pause_s=60)
    play = Play(rolling)
    play.go()
    play.wait(60)
    assert (play.state, play.deployment.now.share) == (S.PROMOTING, 1.0)
    play.ask(Ask.COMPLETE)
    assert play.go() == ["DEPLOYING web@2=3", "DEPLOYED", "ROUTING 100%web@2", "DRAINING", END]


@pytest.mark.parametrize(
    ("state", "stage", "expected"),
    [
        (S.PENDING, 0, ["FAILED web@2=0 web@1=3 -active/shop"]),
        (S.DEPLOYING, 0, ["ROLLING_BACK 100%web@1", *BACK]),
        (S.DEPLOYED, 0, ["ROLLING_BACK 100%web@1", *BACK]),
        (S.ROUTING, 0, ["ROLLING_BACK 100%web@1", *BACK]),
        (S.PROMOTING, 0, ["ROLLING_BACK 100%web@1 web@1=3", *BACK]),
        (S.DEPLOYING, 2, ["ROLLING_BACK 100%web@1 web@1=3", *BACK]),
        (S.ROUTING, 2, ["ROLLING_BACK 66.67%web@1|33.33%web@2 web@1=3", "... 100%web@1", *BACK]),
        (S.DRAINING, 2, [END]),
        (S.COMPLETED, 2, []),
    ],
)  # fmt: skip
def test_going_back_when_asked(state: S, stage: int, expected: list[str]) -> None:
    play = Play(deployment("rolling", change()))
    play.go_to(state, stage)
    play.ask(Ask.ROLLBACK)
    assert play.go() == expected


def test_asking_to_go_back_twice_changes_nothing() -> None:
    play = Play(deployment("blue_green", change()))
    play.go()
    play.ask(Ask.ROLLBACK)
    play.step()
    play.ask(Ask.ROLLBACK)
    assert play.go() == BACK


# Back by itself


@pytest.mark.parametrize("kind", ["immediate", "rolling", "canary", "blue_green"])
def test_what_never_becomes_healthy_fails_before_traffic_moves(kind: str) -> None:
    play = Play(deployment(kind, change()), broken={NEW})
    assert play.go()[-1] == "FAILED web@2=0 web@1=3 -active/shop"
    assert play.why == "instance 'web@2-1' on 'node-1' failed 3 times: it ended"
    assert play.deployment.failures[0].id == "web@2-1"
    assert play.routes.shares == {"web": {OLD: 10_000}}


def test_what_does_not_become_healthy_in_time_fails() -> None:
    play = Play(deployment("rolling", change()), stuck={NEW})
    assert play.go() == ["DEPLOYING web@2=1"]
    assert play.wait(DEADLINE_S - 1) == []
    assert play.wait(1) == ["FAILED web@2=0 web@1=3 -active/shop"]
    assert play.why == "deadline passed: web: 0 of 1 healthy"


def test_healthy_instances_that_envoys_do_not_know_are_not_there_yet() -> None:
    play = Play(deployment("rolling", change()))
    play.go_to(S.DEPLOYING)
    play.is_envoy_deaf = True
    assert play.go() == []
    play.wait(DEADLINE_S)
    assert play.why == "deadline passed: web: not known to every node's Envoy"


def test_a_late_stage_that_does_not_become_healthy_goes_back() -> None:
    play = Play(deployment("rolling", change()))
    play.go_to(S.PROMOTING, 0)
    play.stuck = {NEW}
    assert play.go() == ["DEPLOYING web@2=2"]
    assert play.wait(DEADLINE_S) == ["ROLLING_BACK 100%web@1 web@1=3", *BACK]
    assert [failure.id for failure in play.deployment.failures] == ["web@2-2"]


def test_an_envoy_that_does_not_confirm_in_time_turns_it_back() -> None:
    play = Play(deployment("rolling", change()))
    play.go_to(S.ROUTING, 0)
    play.is_envoy_deaf = True
    assert play.wait(DEADLINE_S - 1) == []
    assert play.wait(1) == ["ROLLING_BACK 100%web@1"]
    assert play.why == "not confirmed in time by the Envoy of node-1"
    play.is_envoy_deaf = False
    assert play.go() == BACK


@pytest.mark.parametrize("kind", ["rolling", "canary"])
@pytest.mark.parametrize("ask", [None, Ask.PROMOTE])
def test_a_degraded_version_goes_back_at_once(kind: str, ask: Ask | None) -> None:
    play = Play(deployment(kind, change()))
    play.go_to(S.PROMOTING, 0)
    play.judge(web=Verdict.DEGRADED)
    if ask is not None:
        play.ask(ask)
    back = play.go()
    assert back[0].startswith("ROLLING_BACK 100%web@1")
    assert back[1:] == BACK
    turned = next(move for move in play.deployment.history if move.state == S.ROLLING_BACK)
    assert turned.why == "DEGRADED: web: say degraded"
    assert turned.inputs["web"]["why"] == "say degraded"


def test_instances_that_break_while_it_holds_turn_it_back() -> None:
    play = Play(canary())
    play.go()
    play.broken = {NEW}
    assert play.go() == ["ROLLING_BACK 100%web@1", *BACK]


def test_one_worse_slice_turns_all_back() -> None:
    play = Play(canary(change(), change(name="api")))
    play.go()
    play.judge(web=Verdict.HEALTHY, api=Verdict.DEGRADED)
    assert play.go()[0] == "ROLLING_BACK 100%api@1 100%web@1"


# Waits end


@pytest.mark.parametrize(
    ("begun", "longest_s", "first", "why"),
    [
        (canary(), 600, "ROLLING_BACK 100%web@1",
         "held 600 s: INCONCLUSIVE: web: nothing counted yet"),
        (deployment("blue_green", change(), complete_after_s=90), 90, "DRAINING web@1=0",
         "held 90 s"),
        (deployment("ab_test", change(), **BY_HEADER, end_after_s=90), 90,
         "ROLLING_BACK 100%web@1", "held 90 s: nobody said how it goes on"),
    ],
    ids=["canary", "blue_green", "ab_test"],
)  # fmt: skip
def test_nobody_says_anything(begun: Deployment, longest_s: float, first: str, why: str) -> None:
    play = Play(begun)
    play.go()
    assert play.wait(longest_s - 1) == []
    assert play.wait(1)[0] == first
    assert why in [move.why for move in play.deployment.history]


@pytest.mark.parametrize("recovers", [True, False])
def test_a_stage_that_lost_an_instance_waits_for_it_as_long_as_it_may(recovers: bool) -> None:
    play = Play(deployment("rolling", change(), pause_s=30))
    play.go()
    play.stuck = {NEW}
    del play.statuses[next(name for name in play.statuses if name.startswith(NEW))]
    assert play.wait(30) == []
    if recovers:
        play.stuck = set()
        assert play.go()[0] == "DEPLOYING web@2=2"
        return
    assert play.wait(59) == []
    assert play.wait(1)[0] == "ROLLING_BACK 100%web@1 web@1=3"
    turned = next(move for move in play.deployment.history if move.state == S.ROLLING_BACK)
    assert turned.why == "held 90 s: web: 0 of 1 healthy"


def test_going_back_waits_for_old_instances_to_carry_the_traffic() -> None:
    play = Play(deployment("rolling", change(4)))
    play.go_to(S.PROMOTING, 2)  # One of four old instances is left.
    play.obey()
    play.stuck = {OLD}
    play.ask(Ask.ROLLBACK)
    assert play.go() == ["ROLLING_BACK 50%web@1|50%web@2 web@1=4"], "twice what one of four had"
    play.stuck = set()
    assert play.go() == ["... 100%web@1", *BACK]


def test_going_back_ends_even_if_the_old_instances_do_not_come_back() -> None:
    play = Play(deployment("rolling", change(4)))
    play.go_to(S.PROMOTING, 2)
    play.obey()
    play.stuck = {OLD}
    play.ask(Ask.ROLLBACK)
    play.go()
    assert play.wait(2 * DEADLINE_S) == ["FAILED 100%web@1 web@2=0 -active/shop"]
    assert "not all of its instances came back in time" in play.why


def test_draining_ends_at_the_deadline() -> None:
    play = Play(deployment("immediate", change()))
    play.go_to(S.DRAINING)
    play.at = play.deployment.deadline_at
    assert play.step() == END


# All of it


@pytest.mark.parametrize("kind", ["immediate", "rolling", "canary", "blue_green"])
def test_every_step_may_be_taken_twice(kind: str) -> None:
    """A leader that was deposed after it decided, and a new one, decide the same."""
    play = Play(deployment(kind, change()))
    play.judge(web=Verdict.HEALTHY)
    for _ in range(60):
        sight = play.sight()
        assert step(play.deployment, sight) == step(play.deployment, sight)
        if play.step() is None and not play.obey():
            play.at += timedelta(hours=1)
    assert play.deployment.is_over


def test_limits_share_out_the_false_alarm() -> None:
    two = canary(change(), change(name="api"), max_error_rate=0.02)
    assert limits_of(two) == Limits(max_error_rate=0.02, alpha=FALSE_ALARM / 4)
    first = deployment("immediate", SliceChange("web", None, fleet("1")))
    assert limits_of(first) == Limits(alpha=FALSE_ALARM)
