"""Keeps a worker's fence (fence.py): looks at the lease, asks callers, and lets go of those who do not answer."""

from __future__ import annotations

import asyncio
from typing import Final

from penstock.cluster.membership import Membership
from penstock.kit.front import Front
from penstock.kit.log import get_logger

from .fence import Fence, Step

LOOK: Final = 0.5
"""Seconds between two looks."""

log = get_logger()


async def keep_fence(membership: Membership, front: Front) -> None:
    """Until cancelled."""
    fence, clock = Fence(), asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(LOOK)
        step = fence.look(clock(), membership.present)
        if step is Step.ASK:
            front.ask()
        elif step is Step.RESET and (gone := front.reset_unanswered()):
            log.warning("callers_let_go", connections=gone, why="the lease is over and they do not answer")
