"""How much is measured: the whole, or just enough to see that the bench works."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Counts of repetitions, and loads. Units: bytes, seconds and requests where named so."""

    nodes: int = 5
    bootstraps: int = 5
    deploys: int = 5
    commands: int = 10
    upload_bytes: int = 500_000_000
    rounds: int = 8
    round_s: int = 8
    switches: int = 600
    requests: int = 1_000_000


QUICK = Sizes(
    bootstraps=1,
    deploys=1,
    commands=3,
    upload_bytes=50_000_000,
    rounds=2,
    round_s=2,
    switches=50,
    requests=20_000,
)
