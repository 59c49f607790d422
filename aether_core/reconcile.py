"""Making this node run what it is assigned: a pure difference, and the loop that carries it out."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from loguru import logger

from aether_core import keys
from aether_core.instances import Instance, Kept, Surroundings, kept_instances
from aether_core.model import Assignment, Fleet, InstanceId, InstanceStatus
from aether_core.node import Node
from aether_core.process import kill_strangers
from aether_core.statuses import Statuses


@dataclass(frozen=True)
class Difference:
    """What to begin and what to end."""

    start: tuple[Assignment, ...]
    drain: tuple[InstanceId, ...]


def difference(desired: Iterable[Assignment], running: Iterable[InstanceId]) -> Difference:
    """Compare what should run with what does. Carried out, it leaves none."""
    wanted = {assignment.id: assignment for assignment in desired}
    present = set(running)
    return Difference(
        start=tuple(wanted[name] for name in sorted(wanted.keys() - present)),
        drain=tuple(sorted(present - wanted.keys())),
    )


class Workload:
    """The instances of this node, each a task; their statuses on the way to the store."""

    def __init__(self, node: Node, around: Surroundings) -> None:
        self._node = node
        self._around = around
        self._running: dict[InstanceId, tuple[Instance, asyncio.Task[None]]] = {}
        self._statuses = Statuses(node.id, node.joined_store(), node.mirror, node.clock)

    def adopt(self) -> None:
        """Take over what an earlier agent started, and end what it had no time to note down."""
        kept = kept_instances(self._around.directory)
        children = [one.child for one in kept if one.child is not None]
        kill_strangers(self._around.directory, children)
        for one in kept:
            self._begin(one)

    async def reconcile(self) -> None:
        """Start and drain instances as assignments come and go, for ever."""
        mirror = self._node.mirror
        prefix = keys.assignments(self._node.id)
        with mirror.watching() as changed:
            while True:
                changed.clear()
                if mirror.revision:  # Before the first listing nothing is known.
                    self._step(mirror.all(Assignment, prefix))
                await changed.wait()

    def _step(self, desired: list[Assignment]) -> None:
        to_do = difference(desired, self._running)
        for assignment in to_do.start:
            fleet = self._node.mirror.get(Fleet, keys.fleet(assignment.fleet))
            if fleet is not None:
                self._begin(Kept(assignment, fleet.spec))
        for name in to_do.drain:
            self._running[name][0].drain()

    async def publish(self) -> None:
        """Keep what the store says of the instances true, for ever."""
        await self._statuses.publish()

    def report(self, status: InstanceStatus) -> None:
        """Take what an instance says of itself."""
        logger.info("instance '{}' is {}{}", status.id, status.state, f": {status.why}"[:200])
        self._statuses.say(status)

    def instance(self, name: str) -> Instance | None:
        found = self._running.get(InstanceId(name))
        return found[0] if found else None

    def _begin(self, kept: Kept) -> None:
        instance = Instance(self._around, kept)
        task = asyncio.ensure_future(instance.run())
        self._running[kept.assignment.id] = (instance, task)
        self._statuses.keep(kept.assignment.id)
        task.add_done_callback(lambda done: self._ended(kept.assignment.id, done))

    def _ended(self, name: InstanceId, task: asyncio.Task[None]) -> None:
        del self._running[name]
        if task.cancelled():
            return
        if task.exception() is not None:
            # A defect of ours: said loudly; the next step begins the instance anew, adopting it.
            logger.opt(exception=task.exception()).error("instance '{}' lost its keeper", name)
            return
        self._statuses.forget(name)
