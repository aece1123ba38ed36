"""What would have a place on a worker more, and what still has one on a worker less. Pure.

Both are judged by the obstacles and ledgers that placement itself goes by, on workers that are only thought of.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .placement.obstacles import fitting_share, obstacle, standing
from .placement.seat import Seat, Share
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
        if replica.devices:
            devices += sum(size for _, size in replica.devices)
    offered = sum(device.memory_bytes for device in kind.worker.devices)
    return max(_whole(memory, kind.worker.memory_bytes * part), _whole(devices, offered * part))


def _whole(used: int, each: float) -> int:
    return math.ceil(used / each - 1e-9) if used and each else 0


class Floor:
    """All workers that stay, to try who could go. Seats are taken only where it is tried."""

    def __init__(self, cluster: Cluster, staying: Iterable[str]) -> None:
        self._cluster = cluster
        self._staying = set(staying)
        # The roomiest first: bytes below zero, and the name.
        self._order = sorted((-self._left(worker), worker) for worker in self._staying)
        self._seats: dict[str, Seat] = {}
        self._moved: dict[VersionId, set[str]] = {}

    def clear(self, worker: str) -> str | None:
        """Moves all that a worker runs to others and takes it away. Says what has no place elsewhere, and then changes
        nothing; None when it is done."""
        seat = self._seat(worker)
        runs = ((self._cluster.item(replica.id), replica) for replica in seat.replicas.values())
        items = [item for item, replica in runs if item is not None and not replica.leaving]
        # What cannot go at all first, which costs nothing to find out; then the biggest.
        items.sort(key=lambda item: (not item.needs.pinned, -item.memory_bytes, item.id))
        self._staying.discard(worker)
        self._order.remove((-seat.free, worker))
        moved: list[tuple[str, Wanted]] = []
        for item in items:
            held = item.needs.pinned and not self._is_ready_elsewhere(item)
            found = None if held else self._place(item)
            if found is None:
                for name, other in moved:
                    self._move(name, other, None)
                self._staying.add(worker)
                insort(self._order, (-seat.free, worker))
                return f"{'the only ready copy of pinned ' if held else ''}{item.id.name}@{item.id.version}"
            moved.append((found, item))
        return None

    def _is_ready_elsewhere(self, item: Wanted) -> bool:
        return item.replicas > 1 and any(self._cluster.ready(name, item.id) for name in self._with(item.id))

    def _place(self, item: Wanted) -> str | None:
        """Books it on the roomiest that can have it."""
        domains = Counter[str]()
        if item.needs.spread_required:
            domains.update(self._cluster.workers[name].domain for name in self._with(item.id))
        for taken, name in self._order:
            if -taken < item.memory_bytes:
                return None
            seat = self._seat(name)
            if item.id in seat.replicas or standing(item, seat.worker) is not None:
                continue
            share = fitting_share(item, seat, domains)
            if share is not None:
                self._move(name, item, share)
                return name
        return None

    def _move(self, worker: str, item: Wanted, share: Share | None) -> None:
        """Books it there; None takes it away again."""
        seat, moved = self._seat(worker), self._moved.setdefault(item.id, set())
        self._order.remove((-seat.free, worker))
        if share is None:
            seat.remove(item)
            moved.discard(worker)
        else:
            seat.add(item, share)
            moved.add(worker)
        insort(self._order, (-seat.free, worker))

    def _with(self, version: VersionId) -> Iterator[str]:
        """Who stays and has a replica that does."""
        moved = self._moved.get(version, ())
        for name in self._staying:
            told = self._cluster.assignments.get(name, ())
            if name in moved or any(replica.id == version and not replica.leaving for replica in told):
                yield name

    def _left(self, worker: str) -> int:
        """As its seat says it, without taking one."""
        told = self._cluster.assignments.get(worker, ())
        return self._cluster.workers[worker].memory_bytes - sum([replica.memory_bytes for replica in told])

    def _seat(self, worker: str) -> Seat:
        if worker not in self._seats:
            seat = self._seats[worker] = Seat(self._cluster.workers[worker])
            for replica in self._cluster.assignments.get(worker, ()):
                item = self._cluster.item(replica.id)
                if item is None:
                    seat.free -= replica.memory_bytes
                else:
                    seat.add(item, replica.devices, memory_bytes=replica.memory_bytes, leaving=replica.leaving)
        return self._seats[worker]
