"""What would have a place on a worker more, and what still has one on a worker less. Pure.

Both are judged by the obstacles and ledgers that placement itself goes by, on workers that are only thought of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .placement.obstacles import fitting_share, obstacle, standing
from .placement.seat import Seat
from .snapshot import Replica, VersionId, Wanted, Worker

LABEL: Final = "pool"
"""Key of the label that names a worker's pool."""
MOST_LOOKED_AT: Final = 1000
"""Versions without a place that one look goes through, the most important first; the others' turn comes later."""
_PROBE: Final = "+"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is decided on.

    workers: live ones. assignments: of the plan. lacking: what has no place, with how many replicas, the most important
    first. item: what a version is wanted as. ready: whether a worker's replica takes requests. unsure: whether workers
    may be there that are not seen now, so that nobody knows what there is.
    """

    workers: Mapping[str, Worker]
    assignments: Mapping[str, Sequence[Replica]]
    lacking: Sequence[tuple[Wanted, int]]
    item: Callable[[VersionId], Wanted | None]
    ready: Callable[[str, VersionId], bool]
    unsure: bool = False

    def domains(self, version: VersionId) -> Counter[str]:
        """Replicas of a version that stay, by failure domain."""
        return Counter(
            self.workers[worker].domain
            for worker, replicas in self.assignments.items()
            if worker in self.workers and any(r.id == version and not r.leaving for r in replicas)
        )


@dataclass(frozen=True, slots=True)
class Kind:
    """What a worker of a pool is like. apart: whether a new one is in a failure domain of its own."""

    worker: Worker
    apart: bool = True


def kind_of(members: Sequence[Worker], before: Kind | None) -> Kind | None:
    """What they have in common, else what was known before. One alone says nothing of where the next would be."""
    if not members:
        return before
    smallest = min(members, key=lambda worker: (worker.memory_bytes, worker.id))
    shared = set.intersection(*(set(worker.labels.items()) for worker in members))
    common = replace(
        smallest,
        engines=frozenset.intersection(*(worker.engines for worker in members)),
        labels=dict(shared),
        taints=frozenset().union(*(worker.taints for worker in members)),
    )
    if len(members) == 1:
        return Kind(common, before is None or before.apart)
    return Kind(common, len({worker.domain for worker in members}) == len(members))


@dataclass(slots=True)
class Newcomers:
    """Workers that are thought of, for what lacks a place.

    room: how many each pool may have more, in the order in which pools are asked. added: how many it takes; whom: for
    which versions. left: whether something still has no place, since it fits on none or no pool may grow any more.
    """

    cluster: Cluster
    kinds: Mapping[str, Kind | None]
    room: Mapping[str, int]
    added: Counter[str] = field(default_factory=Counter)
    whom: dict[str, list[VersionId]] = field(default_factory=dict)
    left: bool = False
    _seats: dict[str, list[Seat]] = field(default_factory=dict)
    _probed: set[str] = field(default_factory=set)

    def receive(self) -> None:
        """Gives places to what lacks them, as long as there are pools that may grow."""
        for item, count in self.cluster.lacking[:MOST_LOOKED_AT]:
            domains = self.cluster.domains(item.id) if item.needs.spread_required else Counter[str]()
            for _ in range(count):
                pool = self._seat(item, domains) or self._probe(item)
                if pool is None:
                    self.left = True
                    break
                found = self.whom.setdefault(pool, [])
                if item.id not in found:
                    found.append(item.id)

    def _seat(self, item: Wanted, domains: Counter[str]) -> str | None:
        """The pool that takes one more replica, on a newcomer that is thought of already or on one more."""
        opened = ((pool, seat) for pool, seats in self._seats.items() for seat in seats)
        for pool, seat in (*opened, *self._fresh()):
            if obstacle(item, seat, domains) is not None:
                continue
            seat.add(item, seat.share_of(item.needs) or ())
            domains[seat.worker.domain] += 1
            if seat not in self._seats.setdefault(pool, []):
                self._seats[pool].append(seat)
                self.added[pool] += 1
            return pool
        return None

    def _fresh(self) -> Iterable[tuple[str, Seat]]:
        for pool, room in self.room.items():
            kind = self.kinds[pool]
            if kind is None or self.added[pool] >= room:
                continue
            name = f"{_PROBE}{pool}{self.added[pool]}"
            domain = name if kind.apart else kind.worker.domain
            yield pool, Seat(replace(kind.worker, id=name, draining=False, failure_domain=domain))

    def _probe(self, item: Wanted) -> str | None:
        """A pool of which no worker was ever seen: one worker of it may help, and shows what it is like."""
        asked = dict(item.needs.selector).get(LABEL)
        for pool, room in self.room.items():
            if self.kinds[pool] is None and room > 0 and asked in (None, pool):
                self.added[pool] = 1
                return pool
        return None

    def reserved(self, pool: str) -> Iterable[Replica]:
        """What newcomers of a pool would run."""
        return (replica for seat in self._seats.get(pool, ()) for replica in seat.replicas.values())


def workers_for(replicas: Iterable[Replica], kind: Kind, part: float) -> int:
    """How many of a kind offer so much that these fill at most `part` of it, memory and devices looked at apart."""
    memory, devices = 0, 0
    for replica in replicas:
        memory += replica.memory_bytes
        devices += sum(size for _, size in replica.devices)
    offered = sum(device.memory_bytes for device in kind.worker.devices)
    return max(_whole(memory, kind.worker.memory_bytes * part), _whole(devices, offered * part))


def _whole(used: int, each: float) -> int:
    return math.ceil(used / each - 1e-9) if used and each else 0


class Floor:
    """Seats of all workers that stay, to try who could go."""

    def __init__(self, cluster: Cluster, staying: Iterable[str]) -> None:
        self._cluster = cluster
        self.seats = {worker: Seat(cluster.workers[worker]) for worker in staying}
        for worker, seat in self.seats.items():
            for replica in cluster.assignments.get(worker, ()):
                item = cluster.item(replica.id)
                if item is not None:
                    seat.add(item, replica.devices, memory_bytes=replica.memory_bytes, leaving=replica.leaving)

    def clear(self, worker: str) -> str | None:
        """Moves all that a worker runs to others and takes it away. Says what has no place elsewhere, and then changes
        nothing; None when it is done."""
        leaving = self.seats.pop(worker)
        moved: list[tuple[Seat, Wanted]] = []
        for replica in sorted(leaving.replicas.values(), key=lambda r: (-r.memory_bytes, r.id)):
            item = self._cluster.item(replica.id)
            if item is None or replica.leaving:
                continue
            found = None if self._holds(item, worker) else self._place(item)
            if found is None:
                for seat, other in moved:
                    seat.remove(other)
                self.seats[worker] = leaving
                what = "the only ready copy of pinned " if self._holds(item, worker) else ""
                return f"{what}{item.id.name}@{item.id.version}"
            moved.append((found, item))
        return None

    def _holds(self, item: Wanted, worker: str) -> bool:
        """Whether it is pinned and no worker that stays has a READY copy beside that worker's."""
        if not item.needs.pinned:
            return False
        others = (name for name, seat in self.seats.items() if name != worker and item.id in seat.replicas)
        return not any(self._cluster.ready(name, item.id) for name in others)

    def _place(self, item: Wanted) -> Seat | None:
        """Books it on the roomiest that can have it."""
        domains = Counter[str]()
        if item.needs.spread_required:
            domains.update(seat.worker.domain for seat in self.seats.values() if item.id in seat.replicas)
        for seat in sorted(self.seats.values(), key=lambda seat: (-seat.free, seat.worker.id)):
            if seat.free < item.memory_bytes:
                return None
            if item.id in seat.replicas or standing(item, seat.worker) is not None:
                continue
            share = fitting_share(item, seat, domains)
            if share is not None:
                seat.add(item, share)
                return seat
        return None
