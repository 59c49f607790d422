"""What must never happen, checked at every commit and every second of a play."""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from aether_core import keys
from aether_core.agent import INGRESS_FAMILIES
from aether_core.deployment import LEGAL_MOVES, Ask, Deployment
from aether_core.drivers import SliceChange
from aether_core.model import (
    WHOLE_SHARE_BP,
    Assignment,
    DeploymentState,
    Fleet,
    FleetId,
    InstanceId,
    InstanceState,
    InstanceStatus,
    NodeId,
    NodeStatus,
    RouteTable,
    SliceRecord,
    slice_of,
)
from aether_core.planning import part
from aether_core.store import Batch, Mirror
from tests.cluster.simulation.machine import Machine
from tests.cluster.simulation.store import Commit

S = DeploymentState
#: Only a leader writes these, and only behind its fence.
LEADERS_OWN = (keys.FLEETS, keys.ROUTES, keys.INSTANCES, keys.TRIALS)
KEEPS_OLD_WHOLE = ("immediate", "canary", "blue_green", "ab_test")
FORWARD = (S.DEPLOYING, S.DEPLOYED, S.ROUTING, S.PROMOTING)
#: By so much may a leader's mirror be behind in the worst weather.
LAG_S = 5.0


@dataclass(frozen=True)
class _Before:
    """The documents that a commit changed, as they were."""

    deployments: dict[str, Deployment | None]
    table: RouteTable
    fleets: dict[FleetId, Fleet]
    records: dict[str, SliceRecord]
    assignments: dict[str, Assignment]


class Referee:
    """Follows every commit. `violations` says in words what went wrong, `trace` what happened."""

    def __init__(self, machines: dict[NodeId, Machine]) -> None:
        self.violations: list[str] = []
        self.trace: list[str] = []
        self.serving: dict[str, Fleet] = {}  # What should run once all is over, per slice.
        self.mirror = Mirror()
        self._machines = machines
        #: Fleets that lost an instance to a fault and are not whole again.
        self._wounded: set[FleetId] = set()
        self._hurt_at_s: dict[FleetId, float] = {}
        #: What an Envoy must have loaded before it is held to anything: it was away.
        self._due: dict[NodeId, int] = {}
        #: New fleets that a rollback took away before every Envoy had turned from them.
        self._forced_out: set[FleetId] = set()
        self._gone_at_s: dict[NodeId, float] = {}
        self._routed: set[str] = set()  # Deployments that moved traffic.
        self._term = 0

    def note(self, text: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():8.2f} {text}")

    def blame(self, text: str) -> None:
        self.note(f"VIOLATION: {text}")
        self.violations.append(text)

    def hurt(self, fleet: FleetId) -> None:
        self._wounded.add(fleet)
        self._hurt_at_s[fleet] = asyncio.get_running_loop().time()

    def on_commit(self, commit: Commit) -> None:
        before = self._before(commit)
        self.mirror.apply(Batch(commit.changes, commit.revision))
        self._note_nodes(commit)
        self._check_fence(commit, before)
        for change in commit.changes:
            if change.key.startswith(keys.DEPLOYMENTS):
                name = change.key.removeprefix(keys.DEPLOYMENTS)
                self._check_move(before.deployments[name], self._deployment(name))
        self._check_one_active()
        touched = {keys.family(change.key) + "/" for change in commit.changes}
        if keys.ROUTES + "/" in touched or keys.FLEETS in touched:
            self._check_shares()
            self._check_turned_away(before)
        if keys.ROUTES + "/" in touched:
            self._check_route_change(before)
        if keys.FLEETS in touched:
            self._check_capacity()
        if keys.INSTANCES in touched or keys.SLICES in touched:
            self._check_ordinals(before)

    # One commit

    def _before(self, commit: Commit) -> _Before:
        mirror = self.mirror
        names = [
            change.key.removeprefix(keys.DEPLOYMENTS)
            for change in commit.changes
            if change.key.startswith(keys.DEPLOYMENTS)
        ]
        return _Before(
            deployments={name: self._deployment(name) for name in names},
            table=self._table(),
            fleets=self._fleets(),
            records={r.name: r for r in mirror.all(SliceRecord, keys.SLICES)},
            assignments={a.id: a for a in mirror.all(Assignment, keys.INSTANCES)},
        )

    def _note_nodes(self, commit: Commit) -> None:
        for change in commit.changes:
            if change.key.startswith(keys.NODE_STATUSES):
                node = NodeId(change.key.removeprefix(keys.NODE_STATUSES))
                if change.entry is None:
                    self.note(f"{node} counts as gone")
                    self._gone_at_s[node] = asyncio.get_running_loop().time()
                    for instance in self._machines[node].instances.values():
                        self.hurt(instance.assignment.fleet)
                else:
                    self._due[node] = self.mirror.newest(*INGRESS_FAMILIES)

    def _check_fence(self, commit: Commit, before: _Before) -> None:
        """Whoever writes what is the leader's compares its term; terms never go back."""
        own = [c.key for c in commit.changes if c.key.startswith(LEADERS_OWN)]
        moved = [
            name
            for name, old in before.deployments.items()
            if old is not None and not _is_only_asked(old, self._deployment(name))
        ]
        terms = [c.created for c in commit.compares if c.key == keys.LEADER and c.created]
        forgotten = [d for d in moved if self._deployment(d) is None]
        if (own or len(moved) > len(forgotten)) and not terms:
            self.blame(f"{commit.author} wrote {[*own, *moved]} without a fence")
        for term in terms:
            if term < self._term:
                self.blame(f"a write of term {term} after one of term {self._term}")
            self._term = max(self._term, term)

    def _check_move(self, old: Deployment | None, new: Deployment | None) -> None:
        if new is None:
            if old is not None and not old.is_over:
                self.blame(f"'{old.id}' was forgotten while it was {old.state}")
            return
        if old is None:
            if new.state != S.PENDING:
                self.blame(f"'{new.id}' began as {new.state}")
            return
        if new.state != old.state:
            why = new.history[-1].why
            self.note(f"{new.id} {old.state} -> {new.state} stage {new.stage}: {why}")
            if new.state not in LEGAL_MOVES[old.state]:
                self.blame(f"'{new.id}' went from {old.state} to {new.state}")
            if new.history[:-1] != old.history:
                self.blame(f"'{new.id}' lost a line of its history")
        elif old.is_over and new != old:
            self.blame(f"'{new.id}' changed after it was over")
        self._check_stage(old, new)
        if new.state == S.ROUTING and old.state != S.ROUTING:
            self._routed.add(new.id)
        if new.state == S.FAILED and old.state != S.ROLLING_BACK and new.id in self._routed:
            self.blame(f"'{new.id}' is FAILED although it had traffic")
        if new.state == S.COMPLETED and old.state != S.COMPLETED:
            self._land(new)

    def _check_stage(self, old: Deployment, new: Deployment) -> None:
        if new.stage == old.stage:
            if (old.state, new.state) == (S.PROMOTING, S.DEPLOYING):
                self.blame(f"'{new.id}' went round stage {new.stage} again")
            return
        if (old.state, new.state) != (S.PROMOTING, S.DEPLOYING):
            self.blame(f"'{new.id}' changed its stage from {old.state} to {new.state}")
        is_asked = old.asking is not None and old.asking.what == Ask.COMPLETE
        allowed = {old.stage + 1, len(old.stages) - 1} if is_asked else {old.stage + 1}
        if new.stage not in allowed:
            self.blame(f"'{new.id}' jumped from stage {old.stage} to {new.stage}")

    def _check_one_active(self) -> None:
        running = [d for d in self.mirror.all(Deployment, keys.DEPLOYMENTS) if not d.is_over]
        active = self.mirror.all(str, keys.ACTIVE)
        if sorted(d.id for d in running) != sorted(active):
            self.blame(f"active is {active}, running is {[d.id for d in running]}")

    def _check_shares(self) -> None:
        """Shares are whole and name only fleets that exist, of the slice."""
        table, fleets = self._table(), self._fleets()
        for name, shares in table.shares.items():
            if sum(shares.values()) != WHOLE_SHARE_BP or min(shares.values()) <= 0:
                self.blame(f"the shares of '{name}' are {shares}")
            for fleet in shares:
                if fleet not in fleets or slice_of(fleet) != name:
                    self.blame(f"a share of '{name}' is for '{fleet}', which is not there")
        for route in table.routes:
            if route.slice not in table.shares:
                self.blame(f"'{route.slice}' has a route and no shares")

    def _check_route_change(self, before: _Before) -> None:
        """Traffic moves with a deployment: to its stage's share, or back, and only where known."""
        table = self._table()
        if table == before.table:
            return
        moved = [d for name in before.deployments if (d := self._deployment(name)) is not None]
        if len(moved) != 1:
            self.blame(f"routes changed with deployments {[d.id for d in moved]}")
            return
        (deployment,) = moved
        old = before.deployments[deployment.id]
        for change in deployment.trials:
            assert change.new, "a trial has one"
            assert change.old, "a trial has one"
            was = before.table.shares.get(change.slice, {}).get(change.new.id, 0)
            now = table.shares.get(change.slice, {}).get(change.new.id, 0)
            if deployment.state == S.ROUTING:
                wanted = round(deployment.now.share * WHOLE_SHARE_BP)
                if now != wanted:
                    self.blame(f"'{deployment.id}': share {now} at a stage of {wanted}")
            elif now > was:
                self.blame(f"'{deployment.id}' is {deployment.state} and the new share grew")
        if deployment.state not in (S.ROUTING, S.ROLLING_BACK, S.FAILED) or (
            deployment.state == S.FAILED and old is not None and old.state != S.ROLLING_BACK
        ):
            self.blame(f"routes changed while '{deployment.id}' became {deployment.state}")
        if deployment.state != S.FAILED:
            # A slice that a rollback brings back has one fleet, however it is: none is better off.
            brought = table.shares.keys() - before.table.shares.keys()
            is_back = deployment.state == S.ROLLING_BACK
            self._check_known(before.table, table, but=brought if is_back else set())

    def _check_known(self, was: RouteTable, now: RouteTable, *, but: set[str]) -> None:
        """Whoever gets traffic anew has an instance that lives, and every live Envoy knows one."""
        had = {fleet for shares in was.shares.values() for fleet in shares}
        new = {f for name, shares in now.shares.items() if name not in but for f in shares} - had
        ready = [
            status
            for status in self.mirror.all(InstanceStatus, keys.INSTANCE_STATUSES)
            if status.state == InstanceState.READY and self._lives(status.node)
        ]
        for fleet in sorted(new):
            is_hurt_now = self._is_recent(self._hurt_at_s.get(fleet))
            if not is_hurt_now and not any(status.fleet == fleet for status in ready):
                self.blame(f"'{fleet}' gets traffic, no instance of it lives")
            for machine in self._held():
                if fleet not in self._wounded and not machine.view.endpoints.get(fleet):
                    self.blame(f"'{fleet}' gets traffic, {machine.id} knows no instance of it")

    def _check_turned_away(self, before: _Before) -> None:
        """A fleet is emptied only when no live Envoy sends it anything; but for the last resort."""
        fleets, forced = self._fleets(), self._forced(before)
        self._forced_out |= forced
        self._wounded |= forced
        for name, old in before.fleets.items():
            is_emptied = old.instances and (name not in fleets or not fleets[name].instances)
            if is_emptied and name not in forced:
                for machine in self._held():
                    if machine.view.routes.shares.get(slice_of(name), {}).get(name):
                        self.blame(f"'{name}' is emptied while {machine.id} sends it requests")

    def _forced(self, before: _Before) -> set[FleetId]:
        """Return the new fleets of rollbacks that have just been given up."""
        found: set[FleetId] = set()
        for name, old in before.deployments.items():
            new = self._deployment(name)
            if old and new and (old.state, new.state) == (S.ROLLING_BACK, S.FAILED):
                found |= {change.new.id for change in new.changes if change.new is not None}
        return found

    def _check_capacity(self) -> None:
        fleets = self._fleets()
        for deployment in self.mirror.all(Deployment, keys.DEPLOYMENTS):
            if deployment.state not in (*FORWARD, S.ROLLING_BACK):
                continue
            for change in deployment.trials:
                assert change.new, "a trial has one"
                assert change.old, "a trial has one"
                old = fleets[change.old.id].instances if change.old.id in fleets else 0
                new = fleets[change.new.id].instances if change.new.id in fleets else 0
                if deployment.strategy in KEEPS_OLD_WHOLE:
                    if old != change.old.instances:
                        self.blame(f"'{change.old.id}' has {old}, not {change.old.instances}")
                elif old + new < _least(deployment, change):
                    self.blame(f"'{change.slice}' has {old} + {new}: too few")

    def _check_ordinals(self, before: _Before) -> None:
        """An instance's name is given once."""
        records = self.mirror.all(SliceRecord, keys.SLICES)
        for record in records:
            old = before.records.get(record.name)
            if old is not None and record.next_ordinal < old.next_ordinal:
                self.blame(f"the ordinals of '{record.name}' went back to {record.next_ordinal}")
        seen: dict[str, Assignment] = {}
        for assignment in self.mirror.all(Assignment, keys.INSTANCES):
            if assignment.id in seen:
                self.blame(f"'{assignment.id}' is on {assignment.node} and elsewhere")
            seen[assignment.id] = assignment
            if assignment.id not in before.assignments:
                for machine in self._machines.values():
                    if assignment.id in machine.instances:
                        self.blame(f"'{assignment.id}' is given again, {machine.id} runs one")

    # One second

    def check_requests(self) -> None:
        """Every live Envoy has somewhere to send requests to, but for what faults took."""
        self._heal()
        self._check_rolling()
        for machine in self._held():
            for shares in machine.view.routes.shares.values():
                for fleet in shares:
                    if fleet not in self._wounded and not self.serving_for(machine, fleet):
                        self.blame(f"{machine.id} has nowhere to send requests for '{fleet}'")

    def _check_rolling(self) -> None:
        """As many instances answer as a rolling deployment promises, but for what faults took."""
        for deployment in self.mirror.all(Deployment, keys.DEPLOYMENTS):
            if deployment.strategy != "rolling" or deployment.state not in FORWARD:
                continue
            for change in deployment.trials:
                assert change.new, "a trial has one"
                assert change.old, "a trial has one"
                fleets = {change.old.id, change.new.id}
                there = sum(len(self._there(fleet)) for fleet in fleets)
                if not fleets & self._wounded and there < _least(deployment, change):
                    self.blame(f"'{change.slice}' has {there} instances that answer: too few")

    def serving_for(self, machine: Machine, fleet: FleetId) -> int:
        """Return how many of the instances that its Envoy knows would answer."""
        known = machine.view.endpoints.get(fleet, frozenset())
        running = (self._machines[n].instances.get(i) for n in self._machines for i in known)
        return sum(instance is not None and instance.is_serving for instance in running)

    def _lives(self, node: NodeId) -> bool:
        """Return whether a leader may still think that the node does."""
        is_there = self.mirror.entry(keys.node_status(node)) is not None
        return is_there or self._is_recent(self._gone_at_s.get(node))

    def _is_recent(self, moment_s: float | None) -> bool:
        """Return whether a leader may not have heard of what happened then."""
        return moment_s is not None and asyncio.get_running_loop().time() - moment_s < LAG_S

    def _heal(self) -> None:
        """A fleet is whole again when every live Envoy knows all of it, on nodes that live."""
        fleets = self._fleets()
        statuses = self.mirror.all(NodeStatus, keys.NODE_STATUSES)
        live = [self._machines[status.id] for status in statuses]
        for fleet in list(self._wounded):
            wanted = fleets[fleet].instances if fleet in fleets else 0
            there = self._there(fleet)
            # Said to be READY again, and that loaded everywhere: an older view is worth nothing.
            said = max((self._ready_since(node, name) for node, name in there), default=0)
            names = {name for _, name in there}
            is_known = all(
                machine.view.revision >= said
                and len(names & machine.view.endpoints.get(fleet, frozenset())) >= wanted
                for machine in live
            )
            if wanted and live and is_known and fleet not in self._forced_out:
                self._wounded.discard(fleet)

    def _ready_since(self, node: NodeId, name: InstanceId) -> float:
        """Return the revision of the status that says so; infinite: none does."""
        key = keys.instance_status(node, name)
        status = self.mirror.get(InstanceStatus, key)
        is_ready = status is not None and status.state == InstanceState.READY
        return self.mirror.modified(key) if is_ready else math.inf

    def _there(self, fleet: FleetId) -> set[tuple[NodeId, InstanceId]]:
        """Return the fleet's instances that answer and are to stay, on nodes that live."""
        return {
            (status.id, name)
            for status in self.mirror.all(NodeStatus, keys.NODE_STATUSES)
            for name, instance in self._machines[status.id].instances.items()
            if instance.assignment.fleet == fleet
            and instance.is_serving
            and self.mirror.entry(keys.assignment(status.id, name))
        }

    def _held(self) -> Iterable[Machine]:
        """Return the live machines whose Envoy loads, and has loaded all since they came back."""
        for status in self.mirror.all(NodeStatus, keys.NODE_STATUSES):
            machine = self._machines[status.id]
            is_able = machine.is_up and not machine.is_refusing
            if is_able and machine.view.revision >= self._due.get(status.id, 0):
                yield machine

    # The end

    def unsettled(self) -> list[str]:
        """Return what is not as it should be once a deployment is over and faults have stopped."""
        lacking = []
        table, fleets = self._table(), self._fleets()
        live = {status.id for status in self.mirror.all(NodeStatus, keys.NODE_STATUSES)}
        if len(live) < len(self._machines):
            lacking.append(f"only {sorted(live)} live")
        wanted = {name: {fleet.id: WHOLE_SHARE_BP} for name, fleet in self.serving.items()}
        if table.shares != wanted:
            lacking.append(f"shares are {table.shares}, not {wanted}")
        there = {name: fleet.instances for name, fleet in fleets.items()}
        if there != {fleet.id: fleet.instances for fleet in self.serving.values()}:
            lacking.append(f"fleets are {there}")
        running = [i for m in self._machines.values() for i in m.instances.values()]
        for fleet in self.serving.values():
            mine = [i for i in running if i.assignment.fleet == fleet.id]
            ready = [i for i in mine if i.status.state == InstanceState.READY]
            if len(mine) != fleet.instances or len(ready) != fleet.instances:
                lacking.append(f"{len(ready)} of {len(mine)} of '{fleet.id}' are ready")
        known = {fleet.id for fleet in self.serving.values()}
        strange = sorted(i.assignment.id for i in running if i.assignment.fleet not in known)
        if strange:
            lacking.append(f"{strange} still run")
        machines = self._machines.values()
        late = [m.id for m in machines if m.view.routes != table or m.is_loading]
        if late:
            lacking.append(f"the Envoys of {late} have not loaded the routes")
        return lacking

    def _land(self, deployment: Deployment) -> None:
        for change in deployment.changes:
            if change.new is not None:
                self.serving[change.slice] = change.new
            else:
                self.serving.pop(change.slice, None)

    # Documents

    def _deployment(self, id: str) -> Deployment | None:
        return self.mirror.get(Deployment, keys.deployment(id))

    def _table(self) -> RouteTable:
        return self.mirror.get(RouteTable, keys.ROUTES) or RouteTable()

    def _fleets(self) -> dict[FleetId, Fleet]:
        return {fleet.id: fleet for fleet in self.mirror.all(Fleet, keys.FLEETS)}


def _is_only_asked(old: Deployment, new: Deployment | None) -> bool:
    return new is not None and replace(new, asking=old.asking) == old


def _least(deployment: Deployment, change: SliceChange) -> int:
    """Return how many instances of old and new a rolling deployment wants at least."""
    assert change.new, "a trial has one"
    assert change.old, "a trial has one"
    size = max(c.new.instances for c in deployment.trials if c.new is not None)
    missing = deployment.options.get("max_unavailable", 0)
    if isinstance(missing, str):
        missing = size * int(missing.rstrip("%")) // 100
    surge = deployment.options.get("max_surge", 1)
    if not missing and surge in (0, "0%"):
        missing = 1
    left = 1.0 - min(missing, size) / size
    return min(part(change.old, left), part(change.new, left))
