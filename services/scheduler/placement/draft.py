"""A plan in the making: who sits where, and where the next replica goes best. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..snapshot import Replica, VersionId, Wanted, Worker
from .knowledge import Knowledge
from .obstacles import fitting_share, standing
from .pools import Pool, Pools
from .seat import Seat, Share

Score = tuple[int, bool, float, int, str]
"""Copies in the failure domain, whether nothing is kept for its tenant, reserved part, replicas, id: the least is the
best."""


class Draft:
    """Seats of all live workers.

    seats: by worker. at: workers of each version, without those where it is leaving, which stand in `leaving`.
    items: what each booked version was booked as. touched: workers whose replicas differ since it was last cleared.
    priorities: how many replicas have each.
    """

    def __init__(self, known: Knowledge) -> None:
        self.known = known
        self.seats: dict[str, Seat] = {}
        self.pools = Pools()
        self.at: dict[VersionId, set[str]] = {}
        self.leaving: dict[VersionId, set[str]] = {}
        self.items: dict[VersionId, Wanted] = {}
        self.touched: set[str] = set()
        self.priorities: dict[int, int] = {}
        self._by_model: dict[str, list[VersionId]] = {}
        self._domains: Counter[str] = Counter()

    def sit(self, worker: Worker) -> None:
        """Takes a worker in, or takes it over as it is now; its replicas must have been lifted."""
        self.stand(worker.id)
        seat = self.seats[worker.id] = Seat(worker)
        self.pools.join(seat)
        if not worker.draining:
            self._domains[worker.domain] += 1
        self.touched.add(worker.id)

    def stand(self, name: str) -> None:
        """Takes a worker out, if it is there."""
        seat = self.seats.pop(name, None)
        if seat is None:
            return
        self.pools.leave(seat)
        if not seat.worker.draining:
            domain = seat.worker.domain
            self._domains[domain] -= 1
            if not self._domains[domain]:
                del self._domains[domain]
        self.touched.add(name)

    def put(
        self, worker: str, item: Wanted, share: Share, *, memory_bytes: int | None = None, leaving: bool = False
    ) -> None:
        """Books a replica on a worker; one that was leaving there stays instead. memory_bytes: other than it asks."""
        seat, version = self.seats[worker], item.id
        if version in seat.replicas:
            self.drop(worker, version)
        seat.add(item, share, memory_bytes=memory_bytes, leaving=leaving)
        places = self.leaving if leaving else self.at
        if version in places:
            places[version].add(worker)
        else:
            places[version] = {worker}
        if version not in self.items:
            self._by_model.setdefault(version.name, []).append(version)
        self.items[version] = item
        priority = item.needs.priority
        self.priorities[priority] = self.priorities.get(priority, 0) + 1
        self.pools.touch(seat)
        self.touched.add(worker)

    def drop(self, worker: str, version: VersionId) -> Replica:
        """Takes a replica off a worker."""
        seat = self.seats[worker]
        item = self.items[version]
        replica = seat.remove(item)
        self.priorities[item.needs.priority] -= 1
        if not self.priorities[item.needs.priority]:
            del self.priorities[item.needs.priority]
        places = self.leaving if replica.leaving else self.at
        places[version].discard(worker)
        if not places[version]:
            del places[version]
        self.pools.touch(seat)
        self.touched.add(worker)
        return replica

    def lift(self, name: str) -> None:
        """Takes all replicas of a model off."""
        for version in self._by_model.pop(name, ()):
            for places in (self.at, self.leaving):
                for worker in tuple(places.get(version, ())):
                    self.drop(worker, version)
            del self.items[version]

    def versions(self, name: str) -> Iterable[VersionId]:
        """Versions of a model that are booked somewhere."""
        return self._by_model.get(name, ())

    def count(self, version: VersionId) -> int:
        """Replicas that stay, those on held workers too."""
        return len(self.at.get(version, ())) + (self.known.held_count(version) if self.known.held else 0)

    def missing(self, item: Wanted) -> int:
        """Replicas that are wanted and have no place."""
        return max(item.replicas - self.count(item.id), 0)

    def domains(self, version: VersionId) -> dict[str, int]:
        """Replicas of a version by failure domain."""
        return Counter(self.seats[worker].worker.domain for worker in self.at.get(version, ()))

    def domain_count(self) -> int:
        """Failure domains that have a worker that stays."""
        return len(self._domains)

    def best(self, item: Wanted, *, without: str = "") -> tuple[str, Share] | None:
        """Where one more replica goes, and on which devices; None when it fits nowhere. without: a worker to leave out.

        Where it was about to leave; then where models sit that it wants to be near; then in the failure domain with
        the fewest copies; then where something is kept for its tenant; then on the worker that is least reserved
        afterwards.
        """
        domains = self.domains(item.id) if item.id in self.at else {}
        for worker in sorted(self.leaving.get(item.id, ())):
            if worker != without and (share := self._back(item, self.seats[worker], domains)) is not None:
                return worker, share
        if item.needs.affinity and (near := self._near(item, domains, without)):
            return near
        least = 0 if len(domains) < len(self._domains) else min(domains.values(), default=0)
        found: tuple[Score, str, Share] | None = None
        for pool in self.pools.eligible(item):
            there = self._first(pool, item, domains, least, without)
            if there is not None and (found is None or there[0] < found[0]):
                found = there
        return None if found is None else found[1:]

    def _back(self, item: Wanted, seat: Seat, domains: dict[str, int]) -> Share | None:
        """Devices for a replica that stays where it was leaving, out of what it has and what is free; or None."""
        if seat.worker.draining or standing(item, seat.worker) is not None:
            return None
        told = seat.remove(item)
        share = fitting_share(item, seat, domains, told)
        seat.add(item, told.devices, memory_bytes=told.memory_bytes, leaving=True)
        return share

    def _first(
        self, pool: Pool, item: Wanted, domains: dict[str, int], least: int, without: str
    ) -> tuple[Score, str, Share] | None:
        """The best seat of a pool."""
        needs = item.needs
        room, entries = item.memory_bytes, pool.by_memory
        if needs.devices:
            room, entries = needs.device_bytes, pool.by_device
        found: tuple[int, Seat, Share] | None = None
        for entry in entries:
            if -entry[0] < room:
                break  # whoever follows has less
            seat = entry[4]
            copies = domains.get(seat.worker.domain, 0) if domains else 0
            if (found is not None and copies >= found[0]) or item.id in seat.replicas or entry[3] == without:
                continue
            share = fitting_share(item, seat, domains)
            if share is None:
                continue
            found = copies, seat, share
            if copies <= least:
                break
        if found is None:
            return None
        copies, seat, share = found
        return _score(item, seat, copies), seat.worker.id, share

    def _near(self, item: Wanted, domains: dict[str, int], without: str) -> tuple[str, Share] | None:
        """The best seat beside a model that it wants to be near."""
        found: tuple[Score, str, Share] | None = None
        beside = {
            worker
            for name in item.needs.affinity
            for version in self._by_model.get(name, ())
            for worker in self.at.get(version, ())
        }
        for worker in beside:
            seat = self.seats[worker]
            if worker == without or item.id in seat.replicas or seat.pool is None or standing(item, seat.worker):
                continue
            share = fitting_share(item, seat, domains)
            if share is None:
                continue
            copies = domains.get(seat.worker.domain, 0)
            score = _score(item, seat, copies)
            if found is None or score < found[0]:
                found = score, worker, share
        return None if found is None else found[1:]


def _score(item: Wanted, seat: Seat, copies: int) -> Score:
    tenant = item.needs.tenant
    elsewhere = bool(tenant) and (seat.kept is None or not seat.kept.has(tenant))
    return copies, elsewhere, seat.used(item), len(seat.replicas), seat.worker.id
