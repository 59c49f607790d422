"""Deployments end, and nobody loses requests, whatever fails: many seeds of the simulation.

What must hold is in `simulation/referee.py`. A failure prints the line that shows it again.
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from loguru import logger

from aether_core import keys, rollout
from aether_core.deployment import Deployment
from aether_core.leader import Leader
from aether_core.model import DeploymentState
from aether_core.rollout import Sight, Step
from aether_core.store import Compare, Delete, Put, put
from tests.cluster.simulate import play_all, replay
from tests.cluster.simulation.run import play
from tests.cluster.simulation.scenario import scenario

FIXED_SEEDS = 150
FRESH_SEEDS = 2
# One of the first so many seeds has to catch a saboteur.
SABOTEUR_SEEDS = 100


@pytest.mark.timeout(900)  # A few minutes where the machine has other things to do.
def test_seeds() -> None:
    fresh = [random.SystemRandom().randrange(2**32) for _ in range(FRESH_SEEDS)]
    outcomes = list(play_all([*range(FIXED_SEEDS), *fresh]))
    failures = [replay(outcome) for outcome in outcomes if outcome.violations]
    assert not failures, "\n".join(["", *failures])
    # Worth nothing if nothing happened: each end is reached, and most plays have four of them.
    ends = Counter(state for outcome in outcomes for state in outcome.states)
    assert min(ends["COMPLETED"], ends["FAILED"], ends["ROLLED_BACK"]) > FIXED_SEEDS / 10, ends


def test_a_seed_repeats() -> None:
    logger.disable("aether_core")
    assert play(1) == play(1)
    assert scenario(1) != scenario(2)


def capacity_before_routes(patch: pytest.MonkeyPatch) -> None:
    """A rollback that takes the new instances before the traffic has left them."""
    give_up = rollout._give_up

    def hasty(deployment: Deployment, sight: Sight, *, why: str, **more: object) -> Step:
        taken = give_up(deployment, sight, why=why, **more)  # type: ignore[arg-type]
        news = [c.new for c in deployment.changes if c.new and not rollout._stays(c)]
        kept = {write.key for write in taken.writes}
        emptied = [put(keys.fleet(f.id), replace(f, instances=0)) for f in news]
        return replace(taken, writes=(*taken.writes, *(e for e in emptied if e.key not in kept)))

    patch.setattr(rollout, "_give_up", hasty)


def no_confirmation(patch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the Envoys."""
    patch.setattr(rollout, "_is_confirmed", lambda revision, sight: True)
    patch.setattr(rollout, "_is_known", lambda status, sight: True)


def no_deadline(patch: pytest.MonkeyPatch) -> None:
    """Waits have no end."""
    never = datetime.max.replace(tzinfo=UTC)
    patch.setattr(rollout, "_has_waited", lambda deployment, sight, seconds: False)
    patch.setattr(Deployment, "turn_back_at", never)


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """A leader that does not compare its term."""

    async def commit(
        self: Leader, writes: list[Put | Delete], compares: list[Compare]
    ) -> int | None:
        revision = await self.store.commit(writes, compares=compares)
        if revision is not None:
            await self.mirror.reach(revision)
        return revision

    patch.setattr(Leader, "_commit", commit)


def second_stage_first(patch: pytest.MonkeyPatch) -> None:
    """The first stage is skipped."""
    route = rollout._route

    def eager(deployment: Deployment, sight: Sight) -> Step | None:
        if not deployment.is_last_stage and deployment.stage == 0:
            ahead = replace(deployment, stages=deployment.stages[1:])
            taken = route(ahead, sight)
            return taken and replace(
                taken, deployment=replace(taken.deployment, stages=deployment.stages)
            )
        return route(deployment, sight)

    patch.setitem(rollout._STEPS, DeploymentState.DEPLOYED, eager)


@pytest.mark.parametrize(
    ("sabotage", "shows"),
    [
        (capacity_before_routes, "is emptied while"),
        (no_confirmation, "is emptied while|knows no instance"),
        (no_deadline, "after its deadline"),
        (no_fence, "without a fence"),
        (second_stage_first, "at a stage of"),
    ],
)
def test_a_saboteur_is_caught(
    sabotage: Callable[[pytest.MonkeyPatch], None], shows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger.disable("aether_core")
    sabotage(monkeypatch)
    found = (play(seed).violations for seed in range(SABOTEUR_SEEDS))
    first = next((violations[0] for violations in found if violations), "nothing was found")
    assert re.search(shows, first), first
