"""From what is known to a plan: keeps, places, makes room. Looks only at what has changed since the plan before. Pure.

A plan that looks at what has changed is the same as one that looks at everything: a version that has not changed, on
workers that have not, keeps its places in either, and everything else is lifted and decided anew in the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from penstock.v1 import cluster_pb2 as pb

from ..snapshot import ClusterSnapshot, Replica, VersionId, Wanted
from . import room
from .draft import Draft
from .knowledge import Knowledge
from .obstacles import fitting_share, kept_share, standing
from .reasons import why_unplaced

_ALIVE = (pb.REPLICA_STATE_PULLING, pb.REPLICA_STATE_LOADING, pb.REPLICA_STATE_READY)
_NOWHERE: Final = frozenset[str]()
MOST_TRIED: Final = 8
"""Replicas without a place for which one plan looks for room, the most important and biggest first."""


_Need: TypeAlias = tuple[bool, int, int, int, VersionId, Wanted]
"""Retiring ones last, then priority, which of the version's replicas, size, version; never compared any further."""


class Unplaced(Mapping[VersionId, str]):
    """Why fewer replicas are placed than wanted. Words are made when asked for, so it is good until the next plan."""

    def __init__(self, draft: Draft, missing: Mapping[VersionId, int], retiring: frozenset[VersionId]) -> None:
        self._draft = draft
        self._missing = missing
        self._retiring = retiring

    def __getitem__(self, version: VersionId) -> str:
        if version in self._missing:
            item = self._draft.known.item(version)
            assert item is not None
            return why_unplaced(item, self._missing[version], self._draft)
        if version in self._retiring:
            return "is retiring: lost replicas are not replaced while the default version serves"
        raise KeyError(version)

    def __iter__(self) -> Iterator[VersionId]:
        yield from sorted(self._missing.keys() | self._retiring)

    def __len__(self) -> int:
        return len(self._missing) + len(self._retiring)


@dataclass(frozen=True, slots=True)
class Plan:
    """What should be.

    assignments: every live or held worker with all that it should run, in order of version.
    unplaced: why fewer replicas are placed than wanted, for people.
    missing: how many replicas are wanted and not placed, retiring versions aside. lacking: the same by version, the
    most important first.
    moves: versions with a worker that they are to leave once they are READY elsewhere.
    touched: workers whose part of the plan may differ from the plan before, or from what they were told.
    """

    assignments: Mapping[str, tuple[Replica, ...]]
    unplaced: Mapping[VersionId, str]
    missing: int
    lacking: Mapping[VersionId, int] = field(default_factory=dict)
    moves: frozenset[tuple[VersionId, str]] = frozenset()
    touched: frozenset[str] = field(default=frozenset(), compare=False)


class Planner:
    """Plans again and again for a cluster that it is told of in `known`."""

    def __init__(self) -> None:
        self.known = Knowledge()
        self.draft = Draft(self.known)
        self._missing: dict[VersionId, Wanted] = {}
        self._retiring_short: set[VersionId] = set()
        self._crowded: set[VersionId] = set()
        self._cramped: set[VersionId] = set()
        self._assignments: dict[str, tuple[Replica, ...]] = {}
        self._unwritten: set[str] = set()

    def plan(self) -> Plan:
        """The plan for the cluster as it is known now."""
        names, workers = self._affected()
        self._forget(names)
        for worker in workers:
            self._reseat(worker)
        wanted = [
            item
            for name in names
            for item in self.known.models.get(name, ())
            if not (item.retiring and self.known.is_replaced(item))
        ]
        self._regroup(wanted)
        wanted.sort(key=_weight)
        # What runs comes first, with all that it takes: only what is left can be promised to what still loads.
        rest = [(item, loading) for item in wanted if (loading := self._keep_ready(item))]
        for item in wanted:
            self._grow(item)
        for item, loading in rest:
            self._keep(item, loading)
        for item in wanted:
            self._keep_leaving(item)
        for item in wanted:
            if item.id in self.known.states and len(self.draft.at.get(item.id, ())) < item.replicas:
                self._keep_reported(item)
            self._settle(item)
        while self._place_missing() or self._find_room() or self._spread_out():
            pass
        return self._finish(workers)

    def _affected(self) -> tuple[set[str], set[str]]:
        """Models to decide anew, and workers to seat anew; both are marked as looked at."""
        known, draft = self.known, self.draft
        workers = known.changed_workers | self._unwritten
        names = known.changed_models | {version.name for version in (*self._missing, *self._cramped, *draft.leaving)}
        for name in known.changed_models:
            # What asks for more may not fit any more: whoever is beside it has to be decided anew too.
            for version in draft.versions(name):
                if not _is_same(draft.items[version], known.item(version)):
                    workers |= draft.at.get(version, set()) | draft.leaving.get(version, set())
        for worker in workers:
            names |= {version.name for version in known.told.get(worker, ())}
            names |= {version.name for version in known.reported.get(worker, ())}
            if worker in draft.seats:
                names |= {version.name for version in draft.seats[worker].replicas}
        known.changed_models, known.changed_workers = set(), set()
        return names, workers

    def _forget(self, names: set[str]) -> None:
        for name in names:
            self.draft.lift(name)
        self._missing = {version: item for version, item in self._missing.items() if version.name not in names}
        self._retiring_short = {version for version in self._retiring_short if version.name not in names}
        self._cramped = {version for version in self._cramped if version.name not in names}
        self._crowded = {version for version in self._crowded if version.name not in names}

    def _reseat(self, worker: str) -> None:
        found = self.known.workers.get(worker)
        if found is None:
            self.draft.stand(worker)
        elif worker not in self.draft.seats or self.draft.seats[worker].worker != found:
            self.draft.sit(found)
        self.draft.touched.add(worker)

    def _regroup(self, wanted: list[Wanted]) -> None:
        labels = {key for item in wanted for key, _ in item.needs.selector}
        self.draft.pools.set_labels(frozenset(labels), self.draft.seats.values())

    def _keep_ready(self, item: Wanted) -> list[str]:
        """Keeps what staying workers were told to run and is READY; where they were told and it is not."""
        at = self.known.told_at.get(item.id)
        if not at:
            return []
        told, states = self.known.told, self.known.states.get(item.id, {})
        staying = [worker for worker in at if not told[worker][item.id].leaving]
        ready = [worker for worker in staying if states.get(worker) == pb.REPLICA_STATE_READY]
        if ready:
            self._keep(item, ready)
        return [worker for worker in staying if worker not in ready] if len(ready) < len(staying) else []

    def _keep_reported(self, item: Wanted) -> None:
        """Keeps what staying workers run though nothing (any more) tells them to: after the store lost its data."""
        told = self.known.told
        states = self.known.states[item.id]
        alive = [worker for worker, state in states.items() if state in _ALIVE and item.id not in told.get(worker, ())]
        self._keep(item, [worker for worker in alive if self.known.ready(worker, item.id)])
        self._keep(item, alive)

    def _keep(self, item: Wanted, workers: list[str]) -> None:
        """Keeps it on those of the workers where it may and can be, as far as it is wanted."""
        draft, known = self.draft, self.known
        # Replicas on workers that are held do not speak against those on live ones.
        wanted = item.replicas - len(draft.at.get(item.id, ()))
        for worker in sorted(workers) if len(workers) > 1 else workers:
            if wanted <= 0:
                return
            seat = draft.seats.get(worker)
            if seat is None or seat.worker.draining or item.id in seat.replicas:
                continue
            if standing(item, seat.worker) is not None:
                continue
            before = known.told[worker].get(item.id) if worker in known.told else None
            domains = draft.domains(item.id) if item.needs.spread_required else {}
            size, share = None, None
            if before is not None and known.ready(worker, item.id):
                size, share = before.memory_bytes, kept_share(item, seat, domains, before)
            if share is None:
                size, share = None, fitting_share(item, seat, domains, before)
            if share is not None:
                draft.put(worker, item, share, memory_bytes=size)
                wanted -= 1

    def _keep_leaving(self, item: Wanted) -> None:
        """Keeps as many READY replicas that may not stay as are not READY elsewhere yet."""
        draft, known = self.draft, self.known
        told: Collection[str] = known.told_at.get(item.id, ())
        if not told or draft.at.get(item.id, _NOWHERE).issuperset(told):
            return
        needed = item.replicas - self._ready_places(item) - known.held_count(item.id)
        for worker in sorted(told):
            seat = draft.seats.get(worker)
            if needed <= 0:
                return
            if seat is None or item.id in seat.replicas or not known.ready(worker, item.id):
                continue
            if not seat.worker.draining and item.engine not in seat.worker.engines:
                continue
            needed -= 1
            before = known.told[worker][item.id]
            fits = all(size <= seat.device_free.get(index, -1) for index, size in before.devices)
            if fits and before.memory_bytes <= seat.free:
                draft.put(worker, item, before.devices, memory_bytes=before.memory_bytes, leaving=True)

    def _grow(self, item: Wanted) -> None:
        """Gives replicas that keep less than they ask for the rest, as far as there is room."""
        draft = self.draft
        for worker in sorted(draft.at.get(item.id, ())):
            seat = draft.seats[worker]
            kept = seat.replicas[item.id]
            asked = seat.share_on(item.needs, [index for index, _ in kept.devices]) if kept.devices else ()
            if (kept.memory_bytes, kept.devices) == (item.memory_bytes, asked):
                continue
            size = min(item.memory_bytes, kept.memory_bytes + max(seat.free_for(item.needs.tenant), 0))
            free = {index: had + max(seat.device_free_for(item.needs.tenant, index), 0) for index, had in kept.devices}
            share = tuple((index, min(wish, free[index])) for index, wish in asked)
            draft.drop(worker, item.id)
            draft.put(worker, item, share, memory_bytes=size)
            if (size, share) != (item.memory_bytes, asked):
                self._cramped.add(item.id)

    def _ready_places(self, item: Wanted) -> int:
        return sum(1 for worker in self.draft.at.get(item.id, ()) if self.known.ready(worker, item.id))

    def _note(self, item: Wanted) -> None:
        """Notes whether it lacks replicas, and whether all it has are in one failure domain."""
        lacks = self.draft.count(item.id) < item.replicas
        if item.retiring:
            self._retiring_short.discard(item.id)
            if lacks and not self.known.is_needed(item):
                self._retiring_short.add(item.id)
                lacks = False
        if lacks:
            self._missing[item.id] = item
        else:
            self._missing.pop(item.id, None)
        if item.replicas > 1:
            self._crowded.discard(item.id)
            if room.is_crowded(self.draft, item):
                self._crowded.add(item.id)

    def _queue(self) -> list[_Need]:
        """What has no place, in the order in which places are given."""
        needs = [
            (item.retiring, -item.needs.priority, nth, -item.size_bytes, item.id, item)
            for item in self._missing.values()
            for nth in range(self.draft.count(item.id), item.replicas)
        ]
        needs.sort()
        return needs

    def _place_missing(self) -> bool:
        """Places what is missing as far as it fits; whether anything was placed."""
        placed = False
        for need in self._queue():
            item = need[5]
            place = self.draft.best(item)
            if place is None and item.default:
                place = room.replace_retiring(self.draft, item)
                for other in self.known.models[item.id.name] if place is not None else ():
                    self._note(other)
            if place is not None:
                self.draft.put(place[0], item, place[1])
                self._settle(item)
                placed = True
        return placed

    def _settle(self, item: Wanted) -> None:
        """Whoever was leaving for a replica that is READY now goes; what is still missing is noted."""
        leaving = self.draft.leaving.get(item.id)
        if leaving:
            left = max(item.replicas - self._ready_places(item) - self.known.held_count(item.id), 0)
            for worker in sorted(leaving)[left:]:
                self.draft.drop(worker, item.id)
        self._note(item)

    def _find_room(self) -> bool:
        """For what fits nowhere: moves others, or evicts what matters less; whether anything has changed."""
        changed = False
        for _, _, nth, _, _, item in self._queue()[:MOST_TRIED]:
            if item.retiring or room.is_coming(self.draft, item):
                continue
            disturbed = room.move_others(self.draft, item, nth) or room.evict(self.draft, item)
            self._settle_all(disturbed)
            changed = changed or bool(disturbed)
        return changed

    def _spread_out(self) -> bool:
        moved = room.spread_out(self.draft, self._crowded)
        self._settle_all(moved)
        return bool(moved)

    def _settle_all(self, versions: Iterable[VersionId]) -> None:
        for version in versions:
            self._settle(self.draft.items[version])

    def _finish(self, workers: set[str]) -> Plan:
        known, draft = self.known, self.draft
        touched = draft.touched | workers | set(known.held) | (self._assignments.keys() - draft.seats.keys())
        for worker in touched:
            if worker in draft.seats:
                self._assignments[worker] = draft.seats[worker].listed()
            elif (held := known.held_replicas(worker)) is not None:
                self._assignments[worker] = held
            else:
                self._assignments.pop(worker, None)
        draft.touched = set()
        self._unwritten -= touched
        for worker in touched:
            if _is_unwritten(known, worker, self._assignments.get(worker)):
                self._unwritten.add(worker)
        missing = {version: draft.missing(item) for version, item in self._missing.items()}
        staying = sorted((item for item in self._missing.values() if not item.retiring), key=_weight)
        return Plan(
            assignments=dict(self._assignments),
            unplaced=Unplaced(draft, missing, frozenset(self._retiring_short)),
            missing=sum(missing[item.id] for item in staying),
            lacking={item.id: missing[item.id] for item in staying},
            moves=frozenset((version, worker) for version, places in draft.leaving.items() for worker in places),
            touched=frozenset(touched),
        )


def _is_same(before: Wanted, now: Wanted | None) -> bool:
    """Whether one replica still asks for the same."""
    if now is None:
        return True  # It asks for nothing any more.
    asks = (before.memory_bytes, before.engine, before.needs, before.manifest_digest, before.retiring)
    return asks == (now.memory_bytes, now.engine, now.needs, now.manifest_digest, now.retiring)


def _weight(item: Wanted) -> tuple[bool, bool, int, int, VersionId]:
    """In which order replicas keep their places, where not all of them can."""
    return item.retiring, not item.needs.pinned, -item.needs.priority, -item.size_bytes, item.id


def _is_unwritten(known: Knowledge, worker: str, desired: tuple[Replica, ...] | None) -> bool:
    """Whether the worker is told something else; None: nothing should tell it anything."""
    told = known.told.get(worker)
    if desired is None:
        return told is not None
    return desired != (tuple(sorted(told.values())) if told else ())


def changes(known: Knowledge, plan: Plan, *, only_add: bool = False) -> dict[str, tuple[Replica, ...] | None]:
    """What to write, by worker id: a whole assignment, or None to delete it. plan: the newest for what is known.

    only_add: leave out whatever takes a replica from a worker.
    """
    changed: dict[str, tuple[Replica, ...] | None] = {}
    for worker in sorted(plan.touched):
        desired = plan.assignments.get(worker)
        if not _is_unwritten(known, worker, desired):
            continue
        if only_add:
            there = known.told.get(worker, {}).keys() | known.reported.get(worker, set())
            if desired is None or there - {replica.id for replica in desired}:
                continue
        changed[worker] = desired
    return changed


def plan(snapshot: ClusterSnapshot) -> Plan:
    """The plan for this cluster."""
    planner = Planner()
    planner.known.learn(snapshot)
    return planner.plan()
