"""Waiting, bounded, for what another process does."""

import asyncio
from collections.abc import Callable

LIMIT_S = 20.0
LOOK_AGAIN_S = 0.005


async def until(condition: Callable[[], object]) -> None:
    """Return when `condition` holds; fail when it does not within LIMIT_S."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(LOOK_AGAIN_S)
