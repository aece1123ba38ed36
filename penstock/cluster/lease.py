"""A lease, judged by our own clock: it surely lasts its TTL from the moment *before* we asked, and that is all we know.

The clock is the loop's (monotonic), which runs on while the process is stopped.
"""

from __future__ import annotations

import asyncio

from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import Point, Renewal


class Lease:
    """At most one lease at a time. ttl: seconds."""

    def __init__(self, etcd: Etcd, ttl: float) -> None:
        self._etcd = etcd
        self.ttl = ttl
        self.id = 0
        """0 while there is none."""
        self.expires = 0.0
        """Loop time until which it surely lasts."""

    async def take(self) -> None:
        """A new lease, in place of any old one."""
        asked = asyncio.get_running_loop().time()
        self.id = await self._etcd.grant(self.ttl)
        self.expires = asked + self.ttl

    async def renew(self, within: float) -> Point | None:
        """Renews it: where the store stood, or None when the lease is gone. After an error, either may be true."""
        asked = asyncio.get_running_loop().time()
        renewal: Renewal = await self._etcd.keepalive(self.id, within=within)
        if renewal.ttl <= 0:
            self.id = 0
            return None
        self.expires = asked + min(self.ttl, renewal.ttl)
        return renewal.point

    def remaining(self) -> float:
        """Seconds that it surely lasts; 0 when that is over."""
        return max(0.0, self.expires - asyncio.get_running_loop().time())
