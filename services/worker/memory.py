"""How much memory this worker offers, and who has reserved it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from penstock import signals
from penstock.errors import ResourceExhausted
from penstock.kit.metrics import gauge

SHARE: Final = 0.6
"""Part of the machine's or the container's memory that a worker offers when it is not told: the rest is for requests
in flight, the engines' working memory and everybody else."""

_CGROUP_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def offered(configured: int) -> int:
    """Bytes to offer: what the operator says, else a share of the cgroup's limit or the machine's memory."""
    if configured:
        return configured
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):
            continue  # no such cgroup version, or "max"
    return int(total * SHARE)


class Ledger:
    """Memory that replicas have reserved. It is book-keeping, not enforcement: placement relies on it."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = 0
        self._freed = asyncio.Event()
        gauge(signals.WORKER_MEMORY_BYTES).set(capacity_bytes)
        self._gauge = gauge(signals.WORKER_RESERVED_BYTES)
        self._gauge.set(0)

    def fits(self, size: int) -> bool:
        """Whether so much is free now."""
        return self.reserved_bytes + size <= self.capacity_bytes

    @asynccontextmanager
    async def reserved(self, size: int) -> AsyncIterator[None]:
        """Holds `size` bytes while the context lasts, once they are free: a replica that drains gives its own back.

        Raises ResourceExhausted when they can never be.
        """
        if size > self.capacity_bytes:
            raise ResourceExhausted(f"needs {size} bytes of memory, the worker offers {self.capacity_bytes}")
        while not self.fits(size):
            self._freed.clear()
            await self._freed.wait()
        self.reserved_bytes += size
        self._gauge.set(self.reserved_bytes)
        try:
            yield
        finally:
            self.reserved_bytes -= size
            self._gauge.set(self.reserved_bytes)
            self._freed.set()
