"""Which version runs on which worker. Pure: the same snapshot gives the same plan, and a plan carried out gives itself.

Rules, strongest first:
1. Reserved memory never exceeds a worker's; the worker has the engine; one replica of a version per worker at most.
2. A replica stays where it is. It goes when nobody wants it, when its worker is gone, cannot hold it any more or drains
   (then as soon as others are READY in its place), or when rule 5 says so.
3. A retiring version stays until the default version has all its replicas READY. It is placed anew only while the
   default version has none READY.
4. Every version gets its first replica before any gets its second; among equals the bigger first; each goes to the
   worker that is then the least reserved.
5. Where the default version fits nowhere, retiring replicas of the same model make room, as long as another replica of
   the model is READY elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from penstock.v1 import cluster_pb2 as pb

from .reasons import why_unplaced
from .snapshot import ClusterSnapshot, Replica, VersionId, Wanted, Worker

_ALIVE = (pb.REPLICA_STATE_PULLING, pb.REPLICA_STATE_LOADING, pb.REPLICA_STATE_READY)


@dataclass(frozen=True, slots=True)
class Plan:
    """What should be.

    assignments: every live or held worker with all that it should run, in order of version.
    unplaced: why fewer replicas are placed than wanted, for people.
    missing: how many replicas are wanted and not placed, retiring versions aside.
    """

    assignments: Mapping[str, tuple[Replica, ...]]
    unplaced: Mapping[VersionId, str]
    missing: int


def plan(snapshot: ClusterSnapshot) -> Plan:
    """The plan for this cluster."""
    draft = _Draft(snapshot)
    wanted = [item for item in snapshot.wanted if not (item.retiring and _is_replaced(item, snapshot))]
    wanted.sort(key=lambda item: (item.retiring, -item.memory_bytes, item.id))
    for item in wanted:
        draft.keep_assigned(item)
    for item in wanted:
        draft.keep_reported(item)
    while draft.place_missing(wanted):
        pass
    for item in wanted:
        draft.keep_leaving(item)
    return draft.finish(wanted)


def changes(snapshot: ClusterSnapshot, plan: Plan, *, only_add: bool = False) -> dict[str, tuple[Replica, ...] | None]:
    """What to write, by worker id: a whole assignment, or None to delete it.

    only_add: leave out whatever takes a replica from a worker.
    """
    changed: dict[str, tuple[Replica, ...] | None] = {}
    for worker, desired in sorted(plan.assignments.items()):
        if desired == snapshot.assignments.get(worker, ()):
            continue
        told = {replica.id for replica in snapshot.assignments.get(worker, ())}
        running = {version for (at, version) in snapshot.states if at == worker}
        if not (only_add and (told | running) - {replica.id for replica in desired}):
            changed[worker] = desired
    if not only_add:
        changed |= {worker: None for worker in sorted(snapshot.assignments) if worker not in plan.assignments}
    return changed


def _is_replaced(item: Wanted, snapshot: ClusterSnapshot) -> bool:
    """Whether the model's default version has all that it wants READY, on workers that stay."""
    default = _default_of(item, snapshot)
    return default is not None and _ready_count(default, snapshot) >= default.replicas


def _is_needed(item: Wanted, snapshot: ClusterSnapshot) -> bool:
    """Whether a retiring version must be placed anew, since the default version serves nothing yet."""
    default = _default_of(item, snapshot)
    return default is None or _ready_count(default, snapshot) == 0


def _default_of(item: Wanted, snapshot: ClusterSnapshot) -> Wanted | None:
    return next((other for other in snapshot.wanted if other.id.name == item.id.name and other.default), None)


def _ready_count(item: Wanted, snapshot: ClusterSnapshot) -> int:
    staying = (worker.id for worker in snapshot.workers.values() if not worker.draining)
    return sum(1 for worker in staying if snapshot.ready(worker, item.id))


class _Draft:
    """A plan in the making."""

    def __init__(self, snapshot: ClusterSnapshot) -> None:
        self._snapshot = snapshot
        self._assignments: dict[str, dict[VersionId, Replica]] = {worker: {} for worker in sorted(snapshot.workers)}
        self._free = {worker.id: worker.memory_bytes for worker in snapshot.workers.values()}
        self._told = {worker: {replica.id for replica in replicas} for worker, replicas in snapshot.assignments.items()}
        self._held = {
            worker: {replica.id: replica for replica in snapshot.assignments[worker]}
            for worker in sorted(snapshot.held)
            if worker in snapshot.assignments and worker not in snapshot.workers
        }

    def keep_assigned(self, item: Wanted) -> None:
        """Keeps what staying workers were told to run, those that are READY first."""
        told = [worker for worker in self._staying(item) if self._is_told(worker, item)]
        self._keep(item, told)

    def keep_reported(self, item: Wanted) -> None:
        """Keeps what staying workers run though nothing (any more) tells them to: after the store lost its data."""
        states = self._snapshot.states
        self._keep(item, [worker for worker in self._staying(item) if states.get((worker, item.id)) in _ALIVE])

    def place_missing(self, wanted: list[Wanted]) -> bool:
        """Places what is missing as far as it fits; whether anything was placed."""
        needs = [
            (item.retiring, nth, -item.memory_bytes, item.id, item)
            for item in wanted
            if not item.retiring or _is_needed(item, self._snapshot)
            for nth in range(self._count(item), item.replicas)
        ]
        placed = False
        for *_, item in sorted(needs, key=lambda need: need[:-1]):
            worker = self._best(item) or (self._make_room(item) if item.default else None)
            if worker is not None:
                self._add(worker, item)
                placed = True
        return placed

    def keep_leaving(self, item: Wanted) -> None:
        """Keeps as many READY replicas on draining workers as are not READY elsewhere yet."""
        workers = self._snapshot.workers
        held = sum(1 for replicas in self._held.values() if item.id in replicas)
        ready = sum(1 for worker in self._holders(item.id) if self._snapshot.ready(worker, item.id))
        needed = item.replicas - ready - held
        for worker in sorted(workers):
            if needed <= 0:
                return
            if workers[worker].draining and self._is_told(worker, item) and self._snapshot.ready(worker, item.id):
                if item.memory_bytes <= self._free[worker]:
                    self._add(worker, item)
                needed -= 1

    def finish(self, wanted: list[Wanted]) -> Plan:
        """The plan as a value."""
        unplaced: dict[VersionId, str] = {}
        missing = 0
        for item in wanted:
            count = self._count(item)
            if count < item.replicas and not item.retiring:
                missing += item.replicas - count
                unplaced[item.id] = why_unplaced(item, item.replicas - count, self._snapshot, self._all(), self._free)
            elif count < item.replicas:
                unplaced[item.id] = "is retiring: lost replicas are not replaced while the default version serves"
        assignments = {
            worker: tuple(sorted(replicas.values(), key=lambda replica: replica.id))
            for worker, replicas in self._all().items()
        }
        return Plan(assignments, unplaced, missing)

    def _all(self) -> dict[str, dict[VersionId, Replica]]:
        return {**self._assignments, **self._held}

    def _keep(self, item: Wanted, workers: list[str]) -> None:
        workers.sort(key=lambda worker: (not self._snapshot.ready(worker, item.id), worker))
        kept = len(list(self._holders(item.id)))
        for worker in workers:
            if kept >= item.replicas:
                return
            if item.id not in self._assignments[worker] and item.memory_bytes <= self._free[worker]:
                self._add(worker, item)
                kept += 1

    def _staying(self, item: Wanted) -> Iterator[str]:
        for worker in self._snapshot.workers.values():
            if not worker.draining and item.engine in worker.engines:
                yield worker.id

    def _is_told(self, worker: str, item: Wanted) -> bool:
        return item.id in self._told.get(worker, ())

    def _holders(self, version: VersionId) -> Iterator[str]:
        """Live workers that run it by this plan."""
        return (worker for worker, replicas in self._assignments.items() if version in replicas)

    def _count(self, item: Wanted) -> int:
        """Replicas that stay: those on held workers too, those on draining workers not (they are added last)."""
        held = sum(1 for replicas in self._held.values() if item.id in replicas)
        leaving = sum(1 for worker in self._holders(item.id) if self._snapshot.workers[worker].draining)
        return held + len(list(self._holders(item.id))) - leaving

    def _best(self, item: Wanted) -> str | None:
        fitting = [
            worker
            for worker in self._staying(item)
            if item.id not in self._assignments[worker] and item.memory_bytes <= self._free[worker]
        ]
        return min(fitting, key=lambda worker: self._load(self._snapshot.workers[worker], item), default=None)

    def _load(self, worker: Worker, item: Wanted) -> tuple[float, int, str]:
        """How loaded the worker would be: reserved share of its memory, then replicas, then its name."""
        reserved = worker.memory_bytes - self._free[worker.id] + item.memory_bytes
        return reserved / max(worker.memory_bytes, 1), len(self._assignments[worker.id]), worker.id

    def _add(self, worker: str, item: Wanted) -> None:
        self._assignments[worker][item.id] = Replica(item.id, item.manifest_digest, item.memory_bytes, item.engine)
        self._free[worker] -= item.memory_bytes

    def _make_room(self, item: Wanted) -> str | None:
        """Rule 5: a worker that fits once retiring replicas of the model have gone from it; they go."""
        retiring = {other.id for other in self._snapshot.wanted if other.id.name == item.id.name and other.retiring}
        for worker in sorted(self._staying(item)):
            replicas = self._assignments[worker]
            if item.id in replicas or not self._is_served_without(worker, item.id.name):
                continue
            going = sorted((r for r in replicas.values() if r.id in retiring), key=lambda r: (-r.memory_bytes, r.id))
            if self._free[worker] + sum(replica.memory_bytes for replica in going) < item.memory_bytes:
                continue
            for replica in going:
                if item.memory_bytes > self._free[worker]:
                    del replicas[replica.id]
                    self._free[worker] += replica.memory_bytes
            return worker
        return None

    def _is_served_without(self, worker: str, name: str) -> bool:
        return any(
            version.name == name and self._snapshot.ready(other, version)
            for other, replicas in self._assignments.items()
            if other != worker
            for version in replicas
        )
