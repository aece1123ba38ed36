"""How much memory this worker offers, and who has reserved it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
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


class Reservation:
    """What one replica holds. memory_bytes, devices: bytes of memory, and of each device by index, as of now."""

    def __init__(self, ledger: Ledger, memory_bytes: int, devices: Mapping[int, int]) -> None:
        self._ledger = ledger
        self.memory_bytes = memory_bytes
        self.devices = dict(devices)

    def correct(self, memory_bytes: int, device_bytes: int = 0) -> None:
        """Takes over what was measured after the load, where that is more: of memory, and of all its devices together.

        It is in use already, so it is booked even where it is more than the worker offers. Less is not taken over: a
        model at rest takes less than one at work.
        """
        self._ledger._book(self, -1)
        self.memory_bytes = max(self.memory_bytes, memory_bytes)
        beyond = device_bytes - sum(self.devices.values())
        if self.devices and beyond > 0:
            each = -(-beyond // len(self.devices))
            self.devices = {index: size + each for index, size in self.devices.items()}
        self._ledger._book(self, 1)


class Ledger:
    """Memory that replicas have reserved, of the machine and of each device. It is book-keeping, not enforcement:
    placement relies on it.

    devices: bytes that each offers, by index.
    """

    def __init__(self, capacity_bytes: int, devices: Mapping[int, int] | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = 0
        self.device_capacity = dict(devices or {})
        self.device_reserved = dict.fromkeys(self.device_capacity, 0)
        self._freed = asyncio.Event()
        gauge(signals.WORKER_MEMORY_BYTES).set(capacity_bytes)
        self._gauge = gauge(signals.WORKER_RESERVED_BYTES)
        self._gauge.set(0)
        offered_by = gauge(signals.WORKER_DEVICE_BYTES)
        self._device_gauge = gauge(signals.WORKER_DEVICE_RESERVED_BYTES)
        for index, size in self.device_capacity.items():
            offered_by.labels(str(index)).set(size)
            self._device_gauge.labels(str(index)).set(0)

    def fits(self, size: int, devices: Mapping[int, int] | None = None) -> bool:
        """Whether so much is free now."""
        return self.reserved_bytes + size <= self.capacity_bytes and all(
            self.device_reserved[index] + wanted <= self.device_capacity[index]
            for index, wanted in (devices or {}).items()
        )

    @asynccontextmanager
    async def reserved(self, size: int, devices: Mapping[int, int] | None = None) -> AsyncIterator[Reservation]:
        """Holds `size` bytes, and so many of devices, while the context lasts, once they are free: a replica that
        drains gives its own back.

        Raises ResourceExhausted when they can never be.
        """
        wanted = dict(devices or {})
        self._check(size, wanted)
        while not self.fits(size, wanted):
            self._freed.clear()
            await self._freed.wait()
        held = Reservation(self, size, wanted)
        self._book(held, 1)
        try:
            yield held
        finally:
            self._book(held, -1)
            self._freed.set()

    def _check(self, size: int, devices: Mapping[int, int]) -> None:
        if size > self.capacity_bytes:
            raise ResourceExhausted(f"needs {size} bytes of memory, the worker offers {self.capacity_bytes}")
        for index, wanted in devices.items():
            has = self.device_capacity.get(index)
            if has is None:
                raise ResourceExhausted(f"needs device {index}, which the worker does not have")
            if wanted > has:
                raise ResourceExhausted(f"needs {wanted} bytes of device {index}, which offers {has}")

    def _book(self, held: Reservation, sign: int) -> None:
        self.reserved_bytes += sign * held.memory_bytes
        self._gauge.set(self.reserved_bytes)
        for index, size in held.devices.items():
            self.device_reserved[index] += sign * size
            self._device_gauge.labels(str(index)).set(self.device_reserved[index])
