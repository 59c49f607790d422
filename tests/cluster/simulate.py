"""Play seeds by hand: `python -m tests.cluster.simulate 123`, or `--seeds 5000` from 0 on."""

import argparse
import sys
from collections import Counter

from loguru import logger

from tests.cluster.simulation.run import play

TRACE_LINES = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    wanted = parser.parse_args()
    logger.remove()
    if wanted.seed is not None:
        outcome = play(wanted.seed)
        print("\n".join(outcome.trace[-TRACE_LINES:]))
        print(f"seed {outcome.seed}: {outcome.seconds:.0f} virtual s, {outcome.states}")
        return bool(outcome.violations)
    failed, ends = 0, Counter[str]()
    for seed in range(wanted.first, wanted.first + wanted.seeds):
        outcome = play(seed)
        ends.update(outcome.states)
        if outcome.violations:
            failed += 1
            print(f"python -m tests.cluster.simulate {seed}  # {outcome.violations[0]}", flush=True)
    print(f"{wanted.seeds} seeds, {failed} failed; deployments ended {dict(ends)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
