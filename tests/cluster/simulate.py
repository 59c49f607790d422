"""Plays seeds: `python -m tests.cluster.simulate 123` shows one, `--seeds 5000` plays that many."""

import argparse
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from loguru import logger

from tests.cluster.simulation.run import Outcome, play

# Given to a process at once: enough to be worth the way, few enough to see failures soon.
CHUNK = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="show what happens in this one")
    parser.add_argument("--seeds", type=int, default=1000, help="play so many, in all processes")
    parser.add_argument("--first", type=int, default=0, help="of these seeds")
    wanted = parser.parse_args()
    if wanted.seed is not None:
        return _show(wanted.seed)
    failed, ends = 0, Counter[str]()
    for outcome in play_all(range(wanted.first, wanted.first + wanted.seeds)):
        ends.update(outcome.states)
        if outcome.violations:
            failed += 1
            _say(replay(outcome))
    _say(f"{wanted.seeds} seeds, {failed} failed; deployments ended {dict(ends)}")
    return bool(failed)


def play_all(seeds: Iterable[int]) -> Iterator[Outcome]:
    """Yield what each seed showed, played by as many processes as there are cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context, initializer=_be_quiet) as pool:
        yield from pool.map(play, seeds, chunksize=CHUNK)


def replay(outcome: Outcome) -> str:
    """Return the line that shows a failure again, and what it was."""
    return f"python -m tests.cluster.simulate {outcome.seed}  # {outcome.violations[0]}"


def _be_quiet() -> None:
    logger.remove()


def _show(seed: int) -> int:
    _be_quiet()
    outcome = play(seed)
    _say("\n".join(outcome.trace))
    _say(f"seed {seed}: {outcome.seconds:.0f} virtual seconds, {', '.join(outcome.states)}")
    return bool(outcome.violations)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
