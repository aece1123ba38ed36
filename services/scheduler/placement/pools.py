"""Workers that are alike, ordered by room, so that the best place is found without looking at all of them. Pure.

A pool holds workers that offer the same to anybody who asks: engines, taints, those labels that some selector names,
devices, reservations, and about as much memory. Within a pool only room differs: who does not fit on the first fits on
none, unless what is free there is kept for a tenant.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from ..snapshot import Wanted, Worker
from .obstacles import standing
from .seat import Seat

Entry = tuple[int, int, int, str, Seat]
"""Free bytes (negative: the most first), a second measure of fullness, replicas, id, and the seat, never compared."""


class Pool:
    """Seats that are alike. by_memory: by free memory; by_device: by the free memory of their emptiest device."""

    __slots__ = ("by_device", "by_memory", "sample")

    def __init__(self, sample: Worker) -> None:
        self.sample = sample
        self.by_memory: list[Entry] = []
        self.by_device: list[Entry] = []


class Pools:
    """All pools. labels: keys of labels that selectors name."""

    def __init__(self) -> None:
        self._labels: frozenset[str] = frozenset()
        self._pools: dict[object, Pool] = {}
        self._stale: set[Seat] = set()
        self._eligible: dict[object, tuple[Pool, ...]] = {}

    def set_labels(self, labels: frozenset[str], seats: Iterable[Seat]) -> None:
        """Says which labels matter; sorts all seats anew when more do than before."""
        if labels <= self._labels:
            return
        self._labels |= labels
        self._pools.clear()
        self._eligible.clear()
        self._stale.clear()
        for seat in seats:
            seat.pool = None
            seat.entries = ()
            self.join(seat)

    def join(self, seat: Seat) -> None:
        """Takes a seat in, unless its worker drains."""
        worker = seat.worker
        if worker.draining:
            return
        key = self._key(worker)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(worker)
            self._eligible.clear()
        seat.pool = pool
        self._stale.add(seat)

    def leave(self, seat: Seat) -> None:
        """Takes a seat out."""
        self._stale.discard(seat)
        _unlist(seat)
        seat.pool = None

    def touch(self, seat: Seat) -> None:
        """Says that a seat's room has changed."""
        if seat.pool is not None:
            self._stale.add(seat)

    def eligible(self, item: Wanted) -> tuple[Pool, ...]:
        """Pools where nothing standing is in the way, in order."""
        if self._stale:
            for seat in self._stale:
                _unlist(seat)
                _enlist(seat)
            self._stale.clear()
        needs = item.needs
        kind = (needs.device_kind, needs.devices) if needs.devices else None
        key = (item.engine, kind, needs.selector, needs.tolerations)
        found = self._eligible.get(key)
        if found is None:
            found = tuple(pool for pool in self._pools.values() if standing(item, pool.sample) is None)
            self._eligible[key] = found
        return found

    def _key(self, worker: Worker) -> object:
        labels = tuple(sorted((key, worker.labels[key]) for key in self._labels & worker.labels.keys()))
        devices = tuple((device.kind, device.memory_bytes) for device in worker.devices)
        return worker.engines, labels, worker.taints, devices, worker.reserved, _about(worker.memory_bytes)


def _about(size: int) -> tuple[int, int]:
    """The class of sizes that differ by an eighth at most."""
    digits = max(size.bit_length() - 4, 0)
    return digits, size >> digits


def _enlist(seat: Seat) -> None:
    pool = seat.pool
    assert isinstance(pool, Pool)
    count, name = len(seat.replicas), seat.worker.id
    entry = (-seat.free, 0, count, name, seat)
    insort(pool.by_memory, entry)
    if not seat.device_free:
        seat.entries = (entry,)
        return
    free = seat.device_free.values()
    by_device = (-max(free), -sum(free), count, name, seat)
    insort(pool.by_device, by_device)
    seat.entries = (entry, by_device)


def _unlist(seat: Seat) -> None:
    if seat.entries:
        pool = seat.pool
        assert isinstance(pool, Pool)
        del pool.by_memory[bisect_left(pool.by_memory, seat.entries[0])]
        if len(seat.entries) > 1:
            del pool.by_device[bisect_left(pool.by_device, seat.entries[1])]
        seat.entries = ()
