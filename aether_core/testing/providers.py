"""What every provider must do, shown with machines that it really makes and removes."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ClassVar

import pytest
import pytest_asyncio

from aether_core.boot import BOOT_FILE, Boot
from aether_core.drivers import Machine, MachineSpec, MachineState, Provider, ProviderContext
from aether_core.errors import NotFound
from aether_core.model import NodeId, encode
from aether_core.plugins import build_driver
from aether_core.testing.ports import free_ports

GROUP = "aether.providers"
POLL_S = 0.1

Build = Callable[[str], Provider]


class ProviderSuite:
    """Inherit and set `name`. A cloud's plugin overrides `context` and reads its credentials
    from the environment: what the suite makes it also removes, whatever fails."""

    pytestmark = pytest.mark.asyncio

    name: ClassVar[str]
    running_within_s: ClassVar[float] = 30.0  # From `create` until the machine is RUNNING.
    #: A path that holds a secret, and the secret, where the suite may read one.
    secret: ClassVar[tuple[str, str] | None] = None

    def context(self, cluster: str, state_dir: Path) -> ProviderContext:
        """Return what the provider is built with."""
        return ProviderContext(cluster, state_dir)

    @pytest_asyncio.fixture
    async def build(self, tmp_path: Path) -> AsyncIterator[Build]:
        """Build the provider of a cluster; in the end the cluster's machines are removed."""
        built: dict[str, Provider] = {}

        def build(cluster: str) -> Provider:
            context = self.context(cluster, tmp_path / cluster)
            built[cluster] = build_driver(GROUP, self.name, context)
            return built[cluster]

        yield build
        for cluster, provider in built.items():
            for machine in await provider.compute.list(cluster):
                await provider.compute.delete(machine)

    @pytest.fixture
    def cluster(self) -> str:
        return _new_name()

    @pytest.fixture
    def provider(self, build: Build, cluster: str) -> Provider:
        return build(cluster)

    async def test_it_has_what_it_says_it_has(self, provider: Provider) -> None:
        assert isinstance(provider, Provider)
        says = provider.capabilities
        assert says.has_balancer == (provider.balancer is not None)
        assert says.has_certificates == (provider.certificates is not None)

    async def test_checking_makes_nothing(self, provider: Provider, cluster: str) -> None:
        await provider.compute.check([_spec(cluster, slot) for slot in (1, 2, 3)])
        assert await provider.compute.list(cluster) == []

    async def test_a_machine_is_made_once(self, provider: Provider, cluster: str) -> None:
        spec = _spec(cluster)
        made = await provider.compute.create(spec)
        again = await provider.compute.create(spec)
        assert again.id == made.id
        assert [machine.id for machine in await provider.compute.list(cluster)] == [made.id]

    async def test_a_listed_machine_is_the_one_that_was_asked_for(
        self, provider: Provider, cluster: str
    ) -> None:
        spec = _spec(cluster)
        await provider.compute.create(spec)
        (machine,) = await provider.compute.list(cluster)
        assert machine.node == spec.node
        assert spec.labels.items() <= machine.labels.items()

    async def test_a_machine_comes_to_run(self, provider: Provider, cluster: str) -> None:
        await provider.compute.create(_spec(cluster))
        machine = await self._running(provider, cluster)
        assert machine.address

    async def test_machines_made_at_once_are_all_there(
        self, provider: Provider, cluster: str
    ) -> None:
        specs = [_spec(cluster, slot) for slot in (1, 2, 3)]
        await asyncio.gather(*map(provider.compute.create, specs))
        found = await provider.compute.list(cluster)
        assert sorted(machine.node for machine in found) == [spec.node for spec in specs]
        assert len({machine.id for machine in found}) == len(specs)

    async def test_discovery_finds_what_compute_made(
        self, provider: Provider, cluster: str
    ) -> None:
        made = [await provider.compute.create(_spec(cluster, slot)) for slot in (1, 2)]
        found = await provider.discovery.peers(cluster)
        assert {machine.id for machine in found} == {machine.id for machine in made}

    async def test_a_removed_machine_is_gone_and_removing_it_again_succeeds(
        self, provider: Provider, cluster: str
    ) -> None:
        made = await provider.compute.create(_spec(cluster))
        await provider.compute.delete(made)
        assert await provider.compute.list(cluster) == []
        await provider.compute.delete(made)

    async def test_one_of_two_is_removed(self, provider: Provider, cluster: str) -> None:
        first, second = [await provider.compute.create(_spec(cluster, slot)) for slot in (1, 2)]
        await provider.compute.delete(first)
        assert [machine.id for machine in await provider.compute.list(cluster)] == [second.id]

    async def test_another_clusters_machines_are_not_touched(
        self, build: Build, provider: Provider, cluster: str
    ) -> None:
        other = _new_name()
        neighbour = build(other)
        theirs = await neighbour.compute.create(_spec(other))
        await self._running(neighbour, other)
        ours = await provider.compute.create(_spec(cluster))
        assert [machine.id for machine in await provider.compute.list(cluster)] == [ours.id]
        await provider.compute.delete(ours)
        (left,) = await neighbour.compute.list(other)
        assert (left.id, left.state) == (theirs.id, MachineState.RUNNING)

    async def test_a_cluster_that_nobody_made_has_no_machines(
        self, provider: Provider, cluster: str
    ) -> None:
        await provider.compute.create(_spec(cluster))
        nobody = _new_name()
        assert await provider.compute.list(nobody) == []
        assert await provider.discovery.peers(nobody) == []

    async def test_a_missing_secret_is_not_found_by_its_name(self, provider: Provider) -> None:
        path = f"{_new_name()}/missing"
        with pytest.raises(NotFound, match=path):
            await provider.secrets.get(path)

    async def test_a_secret_is_read(self, provider: Provider) -> None:
        if self.secret is None:
            pytest.skip(f"the suite of '{self.name}' names no secret that it may read")
        path, value = self.secret
        assert await provider.secrets.get(path) == value

    async def _running(self, provider: Provider, cluster: str) -> Machine:
        """Return the cluster's only machine once it runs."""
        async with asyncio.timeout(self.running_within_s):
            while True:
                (machine,) = await provider.compute.list(cluster)
                if machine.state == MachineState.RUNNING:
                    return machine
                await asyncio.sleep(POLL_S)


def _spec(cluster: str, slot: int = 1) -> MachineSpec:
    """Return a machine whose agent starts and then waits to be told its peers."""
    node, ports = NodeId(f"node-{slot}"), free_ports()
    boot = Boot(cluster, node, "local", ports, "127.0.0.1", False, secrets.token_hex())
    labels = {"cluster": cluster, "node": node, "role": "worker", "slot": str(slot)}
    return MachineSpec(cluster, node, slot, labels, ports, {BOOT_FILE: encode(boot)})


def _new_name() -> str:
    """Return a cluster's name that nobody else has: real clouds are shared by many."""
    return f"conformance-{secrets.token_hex(4)}"
