"""Fleets and changes of them, for tests of what decides on deployments."""

from aether_core.drivers import SliceChange
from aether_core.model import Fleet, FleetId, InstanceSpec


def fleet(version: str, instances: int = 3, *, name: str = "web", least: int = 0) -> Fleet:
    spec = InstanceSpec(name, version, f"{name}:{version}", "0", "pyz")
    return Fleet(FleetId(f"{name}@{version}"), "shop", spec, instances, min_available=least)


def change(instances: int = 3, *, name: str = "web", least: int = 0) -> SliceChange:
    """A slice that goes from version 1 to version 2."""
    old, new = (fleet(v, instances, name=name, least=least) for v in "12")
    return SliceChange(name, old, new)
