"""Asks workers whose records vanished all at once whether they are there, so that what is held is held for a reason."""

from __future__ import annotations

import asyncio

from penstock.errors import PenstockError

from .routes import RoutingTable
from .upstream import Upstreams

INTERVAL = 1.0
TIMEOUT = 1.0


async def probe_held(routes: RoutingTable, upstreams: Upstreams, interval: float = INTERVAL) -> None:
    """Until cancelled. A connection that fails makes the table give the worker up (RoutingTable.disprove); silence
    does not, since a worker may be busy."""
    while True:
        await asyncio.sleep(interval)
        async with asyncio.TaskGroup() as group:
            for address in routes.held_addresses:
                group.create_task(_probe(upstreams, address))


async def _probe(upstreams: Upstreams, address: str) -> None:
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    try:
        await upstreams.call(address, ("", 0), "ServerLive", b"", deadline=deadline, headers={}, wanted=False)
    except PenstockError:
        return  # Upstreams has told whoever needs to know
