"""What one worker keeps for tenants: of the bytes that are reserved for each, those that it does not use yet. Pure."""

from __future__ import annotations

from ..snapshot import Worker


class Kept:
    """A ledger beside the seat's own, for workers with reservations only.

    A replica of a tenant uses its reservation first; beyond that it uses what is open to all. What others hold of it
    since before it was reserved stays theirs until they go.
    """

    __slots__ = ("_devices", "_memory")

    def __init__(self, worker: Worker) -> None:
        # What is reserved less what the tenant has booked: below zero where it uses more than that.
        self._memory: dict[str, int] = {}
        self._devices: dict[int, dict[str, int]] = {device.index: {} for device in worker.devices}
        for entry in worker.reserved:
            self._memory[entry.tenant] = entry.memory_bytes
            sizes = dict(entry.devices)
            for device in worker.devices:
                # More than a device has keeps all of it.
                size = min(sizes.get(device.kind, 0), device.memory_bytes)
                if size:
                    self._devices[device.index][entry.tenant] = size

    def book(self, tenant: str, memory: int, share: tuple[tuple[int, int], ...], sign: int) -> None:
        """Books a replica of a tenant, or with sign -1 gives it back."""
        if tenant not in self._memory:
            return
        self._memory[tenant] -= sign * memory
        for index, size in share:
            if tenant in self._devices[index]:
                self._devices[index][tenant] -= sign * size

    def memory_from(self, tenant: str) -> int:
        """Bytes of memory that others than this tenant have in reserve."""
        return sum(left for name, left in self._memory.items() if left > 0 and name != tenant)

    def device_from(self, tenant: str, index: int) -> int:
        """The same on one device."""
        return sum(left for name, left in self._devices[index].items() if left > 0 and name != tenant)

    def has(self, tenant: str) -> bool:
        """Whether anything is reserved for the tenant here."""
        return tenant in self._memory

    def holder(self, tenant: str) -> str:
        """The first tenant other than this one that has something in reserve; empty when none has."""
        names = {name for name, left in self._memory.items() if left > 0}
        names |= {name for by_tenant in self._devices.values() for name, left in by_tenant.items() if left > 0}
        return min(names - {tenant}, default="")
