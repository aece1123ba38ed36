"""One worker in a plan in the making: the byte ledger of its memory and of each of its devices. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..snapshot import Device, Needs, Replica, VersionId, Wanted, Worker
from .kept import Kept

Share = tuple[tuple[int, int], ...]
"""Index and reserved bytes of each device that a replica uses."""


class Seat:
    """What is left of one worker.

    free: bytes of memory. device_free, device_users: bytes left and replicas, by index of device. repelled:
    how many replicas will not share the worker with a model; replicas that are leaving do not count. kept: what is
    reserved for tenants and not used by them yet; None where nothing is reserved.
    """

    __slots__ = ("device_free", "device_users", "entries", "free", "kept", "pool", "repelled", "replicas", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.free = worker.memory_bytes
        self.device_free = {device.index: device.memory_bytes for device in worker.devices}
        self.device_users = dict.fromkeys(self.device_free, 0)
        self.replicas: dict[VersionId, Replica] = {}
        self.repelled: dict[str, int] = {}
        self.kept = Kept(worker) if worker.reserved else None
        # Where pools.py keeps it; None for a worker that takes nothing new.
        self.pool: object | None = None
        self.entries: tuple[tuple[int, int, int, str, Seat], ...] = ()

    def add(self, item: Wanted, share: Share, *, memory_bytes: int | None = None, leaving: bool = False) -> Replica:
        """Books a replica. memory_bytes: other than what it asks for."""
        size = item.memory_bytes if memory_bytes is None else memory_bytes
        replica = Replica(item.id, item.manifest_digest, size, item.engine, share, leaving)
        self.replicas[item.id] = replica
        self.free -= size
        for index, part in share:
            self.device_free[index] -= part
            self.device_users[index] += 1
        if self.kept is not None:
            self.kept.book(item.needs.tenant, size, share, 1)
        if item.needs.anti_affinity and not leaving:
            self._repel(item, 1)
        return replica

    def remove(self, item: Wanted) -> Replica:
        """Gives back what `add` has booked for the same item."""
        replica = self.replicas.pop(item.id)
        self.free += replica.memory_bytes
        for index, size in replica.devices:
            self.device_free[index] += size
            self.device_users[index] -= 1
        if self.kept is not None:
            self.kept.book(item.needs.tenant, replica.memory_bytes, replica.devices, -1)
        if item.needs.anti_affinity and not replica.leaving:
            self._repel(item, -1)
        return replica

    def free_for(self, tenant: str) -> int:
        """Bytes of memory that are free and not kept for others."""
        return self.free if self.kept is None else self.free - self.kept.memory_from(tenant)

    def device_free_for(self, tenant: str, index: int) -> int:
        """The same on one device."""
        free = self.device_free[index]
        return free if self.kept is None else free - self.kept.device_from(tenant, index)

    def share_of(self, needs: Needs, told: Share = (), *, keeps: bool = True) -> Share | None:
        """Devices for one more replica, None when there are too few with room.

        Those it has already come first; then devices that are in use and fit most tightly, so that whole ones are left
        for those who need them whole. keeps: leave alone what is kept for others, beyond what it was told already.
        """
        if not needs.devices:
            return ()
        mine = dict(told)
        fitting = [device for device in self.worker.devices if self._has_room(needs, device, mine, keeps)]
        if len(fitting) < needs.devices:
            return None
        fitting.sort(key=lambda device: self._preference(device, mine))
        chosen = sorted(fitting[: needs.devices], key=lambda device: device.index)
        return tuple((device.index, reserved_on(needs, device)) for device in chosen)

    def share_on(self, needs: Needs, indices: Collection[int]) -> Share:
        """What it asks for of these devices."""
        chosen = (device for device in self.worker.devices if device.index in indices)
        return tuple((device.index, reserved_on(needs, device)) for device in chosen)

    def stays_any(self, models: Collection[str]) -> str:
        """The first of these models that runs here and is not leaving; empty when none does."""
        return min((r.id.name for r in self.replicas.values() if r.id.name in models and not r.leaving), default="")

    def used(self, item: Wanted) -> float:
        """Reserved part of what it offers, with one more replica: of its devices when the replica uses any. What is
        kept for others counts as used."""
        if item.needs.devices:
            offered = sum(device.memory_bytes for device in self.worker.devices)
            free = sum(self.device_free_for(item.needs.tenant, index) for index in self.device_free)
            return 1 - (free - item.needs.devices * item.needs.device_bytes) / max(offered, 1)
        offered = self.worker.memory_bytes
        return (offered - self.free_for(item.needs.tenant) + item.memory_bytes) / (offered or 1)

    def listed(self) -> tuple[Replica, ...]:
        """Its replicas in order of version."""
        return tuple(sorted(self.replicas.values()))

    def _has_room(self, needs: Needs, device: Device, mine: Mapping[int, int], keeps: bool) -> bool:
        if device.kind != needs.device_kind:
            return False
        index, asked = device.index, reserved_on(needs, device)
        if needs.exclusive and (self.device_users[index] or device.memory_bytes < needs.device_bytes):
            return False
        free = self.device_free[index]
        if keeps and self.kept is not None:
            free = max(self.device_free_for(needs.tenant, index), min(free, mine.get(index, 0)))
        return free >= asked

    def _preference(self, device: Device, mine: Collection[int]) -> tuple[bool, bool, int, int]:
        index = device.index
        return index not in mine, not self.device_users[index], self.device_free[index], index

    def _repel(self, item: Wanted, change: int) -> None:
        for other in item.needs.anti_affinity:
            # A model may say so of itself without shutting its own replicas out: they never share a worker anyway.
            if other != item.id.name:
                self.repelled[other] = self.repelled.get(other, 0) + change


def reserved_on(needs: Needs, device: Device) -> int:
    """Bytes that a replica reserves on a device."""
    if needs.exclusive:
        return device.memory_bytes
    percent = -(-device.memory_bytes * needs.device_percent // 100)
    return max(needs.device_bytes, percent, 1)


def total(replicas: Sequence[Replica]) -> int:
    """Bytes of memory and of devices that replicas reserve: what must be loaded when they move."""
    return sum(replica.memory_bytes + sum(size for _, size in replica.devices) for replica in replicas)
