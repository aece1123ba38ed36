"""Making room for what fits nowhere: moves whose gain is worth their cost, evictions by priority. Pure.

A move loads a replica somewhere else first; the old one leaves when the new one is READY. It costs the bytes that must
be loaded and a fixed sum for each replica that is disturbed. It is made only when what it gains is worth MARGIN times
that: a place for a replica that has none, or a second failure domain for a version that has all its replicas in one.
Nothing moves for balance alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final

from ..snapshot import VersionId, Wanted
from .draft import Draft
from .obstacles import Kind, fitting_share, passing
from .seat import Seat, Share, total

DISTURBANCE: Final = 64 << 20
"""Bytes that disturbing a replica counts for, besides its own size: its caches are cold, its engine warms up again."""
MARGIN: Final = 1.5
"""How many times its cost a move must gain."""
FIRST_WORTH: Final = 4.0
FURTHER_WORTH: Final = 1.0
SPREAD_WORTH: Final = 2.0
"""What a place is worth, times size and disturbance of the replica that gets it: the first of a version, which serves
nothing without; a further one; and one in a second failure domain."""
_OF_BYTES: Final = (Kind.MEMORY, Kind.DEVICE_MEMORY, Kind.EXCLUSIVE, Kind.RESERVED)
MOST_MOVES: Final = 16
"""Replicas that leave for others at the same time, in the whole cluster."""
MOST_SEATS: Final = 8
MOST_VICTIMS: Final = 3
"""Workers that are looked at for one replica, those that lack the least; replicas that are moved off one at most."""
MOST_CROWDED: Final = 64
"""Versions in one failure domain that one plan tries to spread."""


def cost(sizes: Iterable[int]) -> int:
    """What moving replicas of these sizes costs, in bytes."""
    return sum(size + DISTURBANCE for size in sizes)


@dataclass(frozen=True, slots=True)
class _Move:
    """One replica from its worker to a better place for others."""

    item: Wanted
    source: str
    target: str
    share: Share


def replace_retiring(draft: Draft, item: Wanted) -> tuple[str, Share] | None:
    """A worker where it fits once retiring replicas of its own model have gone from it; they go.

    Only while another replica of the model is READY elsewhere.
    """
    retiring = {other.id for other in draft.known.models[item.id.name] if other.retiring}
    workers = {worker for version in retiring for worker in draft.at.get(version, ())}
    allowed = {id(pool) for pool in draft.pools.eligible(item)}
    for worker in sorted(workers):
        seat = draft.seats[worker]
        if id(seat.pool) not in allowed or item.id in seat.replicas or not _is_served_without(draft, worker, item):
            continue
        going = sorted((r for r in seat.replicas.values() if r.id in retiring), key=lambda r: (-r.memory_bytes, r.id))
        domains = draft.domains(item.id)
        enough: list[VersionId] | None = None
        for count in range(1, len(going) + 1):
            versions = [replica.id for replica in going[:count]]
            with _lifted(draft, seat, versions):
                if fitting_share(item, seat, domains) is not None:
                    enough = versions
                    break
        if enough is not None:
            for version in enough:
                draft.drop(worker, version)
            share = fitting_share(item, seat, domains)
            assert share is not None
            return worker, share
    return None


def is_coming(draft: Draft, item: Wanted) -> bool:
    """Whether it will fit somewhere as soon as replicas have left that are about to."""
    workers = {worker for places in draft.leaving.values() for worker in places}
    allowed = {id(pool) for pool in draft.pools.eligible(item)} if workers else set()
    domains = draft.domains(item.id)
    for worker in workers:
        seat = draft.seats[worker]
        if id(seat.pool) not in allowed or item.id in seat.replicas:
            continue
        going = [replica.id for replica in seat.replicas.values() if replica.leaving]
        with _lifted(draft, seat, going):
            if fitting_share(item, seat, domains) is not None:
                return True
    return False


def move_others(draft: Draft, item: Wanted, nth: int) -> Collection[VersionId]:
    """Moves others from one worker so that the nth replica of `item` fits there later; the versions that move.

    Of the workers that lack the least, the one where it costs the least.
    """
    worth = (FURTHER_WORTH if nth else FIRST_WORTH) * cost([item.size_bytes])
    free_moves = MOST_MOVES - sum(len(places) for places in draft.leaving.values())
    if free_moves < 1:
        return ()
    best: tuple[int, str, list[_Move]] | None = None
    for seat, lacking in _nearest(draft, item):
        for moves in _ways(draft, item, seat, lacking):
            if len(moves) > free_moves:
                continue
            price = cost(total([seat.replicas[move.item.id]]) for move in moves)
            if worth >= MARGIN * price and (best is None or (price, seat.worker.id) < best[:2]):
                best = price, seat.worker.id, moves
    if best is None:
        return ()
    for move in best[2]:
        _carry_out(draft, move)
    return [move.item.id for move in best[2]]


def evict(draft: Draft, item: Wanted) -> Collection[VersionId]:
    """Takes replicas of lower priority off a worker and puts `item` there; all versions concerned.

    On the worker where what goes matters the least, then has the fewest bytes. Pinned replicas stay.
    """
    if not any(priority < item.needs.priority for priority in draft.priorities):
        return ()
    domains = draft.domains(item.id)
    best: tuple[int, int, str, list[VersionId]] | None = None
    for pool in draft.pools.eligible(item):
        for entry in pool.by_memory:
            seat = entry[4]
            if item.id in seat.replicas:
                continue
            victims = _lesser(draft, item, seat, domains)
            if victims:
                highest = max(draft.items[version].needs.priority for version in victims)
                size = total([seat.replicas[version] for version in victims])
                if best is None or (highest, size, seat.worker.id) < best[:3]:
                    best = highest, size, seat.worker.id, victims
    if best is None:
        return ()
    for version in best[3]:
        draft.drop(best[2], version)
    share = fitting_share(item, draft.seats[best[2]], domains)
    assert share is not None
    draft.put(best[2], item, share)
    return [*best[3], item.id]


def is_crowded(draft: Draft, item: Wanted) -> bool:
    """Whether all its replicas, two or more, are in one failure domain."""
    at = draft.at.get(item.id, ())
    return len(at) > 1 and not item.retiring and len({draft.seats[worker].worker.domain for worker in at}) == 1


def spread_out(draft: Draft, crowded: Collection[VersionId]) -> list[VersionId]:
    """Moves one replica of each crowded version to another failure domain, where there is room; those versions."""
    if draft.domain_count() < 2 or SPREAD_WORTH < MARGIN:
        return []
    moved = []
    for version in nsmallest(MOST_CROWDED, crowded):
        item, at = draft.items[version], draft.at[version]
        waiting = version in draft.leaving or not all(draft.known.ready(worker, version) for worker in at)
        if item.needs.pinned or waiting or len(at) < item.replicas:
            continue
        if sum(len(places) for places in draft.leaving.values()) >= MOST_MOVES:
            break
        source = max(at, key=lambda worker: (draft.seats[worker].used(item), worker))
        place = draft.best(item, without=source)
        if place is not None and draft.seats[place[0]].worker.domain != draft.seats[source].worker.domain:
            _carry_out(draft, _Move(item, source, *place))
            moved.append(version)
    return moved


def _is_served_without(draft: Draft, worker: str, item: Wanted) -> bool:
    """Whether a replica of the model is READY on another worker, where it stays."""
    return any(
        other != worker and draft.known.ready(other, version)
        for version in draft.versions(item.id.name)
        for other in draft.at.get(version, ())
    )


def _nearest(draft: Draft, item: Wanted) -> list[tuple[Seat, int]]:
    """Workers where only bytes stand in the way, with how many, the fewest first."""
    domains = draft.domains(item.id)
    found = []
    for pool in draft.pools.eligible(item):
        entries = pool.by_device if item.needs.devices else pool.by_memory
        for entry in entries[: 2 * MOST_SEATS]:
            seat = entry[4]
            obstacle = None if item.id in seat.replicas else passing(item, seat, domains)
            if obstacle is not None and obstacle.kind in _OF_BYTES:
                found.append((obstacle.lacking_bytes, seat.worker.id, seat))
    return [(seat, lacking) for lacking, _, seat in nsmallest(MOST_SEATS, found)]


def _ways(draft: Draft, item: Wanted, seat: Seat, lacking: int) -> Iterator[list[_Move]]:
    """Sets of replicas of a seat that make room and have a place elsewhere: the smallest alone, or the biggest few."""
    movable = sorted(
        (replica.memory_bytes + sum(size for _, size in replica.devices), replica.id)
        for replica in seat.replicas.values()
        if _may_move(draft, seat, replica.id)
    )
    for size, version in movable:
        if size >= lacking and _is_enough(draft, item, seat, [version]):
            moves = _targets(draft, seat, [version])
            if moves:
                yield moves
                return
    biggest = [version for _, version in movable[::-1][:MOST_VICTIMS]]
    for count in range(2, len(biggest) + 1):
        if _is_enough(draft, item, seat, biggest[:count]):
            moves = _targets(draft, seat, biggest[:count])
            if moves:
                yield moves
            return


def _may_move(draft: Draft, seat: Seat, version: VersionId) -> bool:
    item = draft.items[version]
    if seat.replicas[version].leaving or version in draft.leaving or item.needs.pinned or item.retiring:
        return False
    return draft.known.ready(seat.worker.id, version)


def _is_enough(draft: Draft, item: Wanted, seat: Seat, going: list[VersionId]) -> bool:
    with _lifted(draft, seat, going):
        return fitting_share(item, seat, draft.domains(item.id)) is not None


def _targets(draft: Draft, seat: Seat, going: list[VersionId]) -> list[_Move]:
    """Where each of them can go, one after the other; empty when one cannot."""
    source = seat.worker.id
    moves: list[_Move] = []
    for version in going:
        item = draft.items[version]
        place = draft.best(item, without=source)
        if place is None:
            break
        moves.append(_Move(item, source, *place))
        draft.put(place[0], item, place[1])
    for move in moves:
        draft.drop(move.target, move.item.id)
    return moves if len(moves) == len(going) else []


def _carry_out(draft: Draft, move: _Move) -> None:
    left = draft.drop(move.source, move.item.id)
    draft.put(move.source, move.item, left.devices, memory_bytes=left.memory_bytes, leaving=True)
    draft.put(move.target, move.item, move.share)


def _lesser(draft: Draft, item: Wanted, seat: Seat, domains: dict[str, int]) -> list[VersionId]:
    """The least important replicas of a seat that make room when they go; empty when that is not enough."""
    candidates = sorted(
        (draft.items[replica.id].needs.priority, -total([replica]), replica.id)
        for replica in seat.replicas.values()
        if not replica.leaving
        and not draft.items[replica.id].needs.pinned
        and draft.items[replica.id].needs.priority < item.needs.priority
    )
    going: list[VersionId] = []
    for _, _, version in candidates:
        going.append(version)
        with _lifted(draft, seat, going):
            if fitting_share(item, seat, domains) is not None:
                return going
    return []


@contextmanager
def _lifted(draft: Draft, seat: Seat, versions: Collection[VersionId]) -> Iterator[None]:
    """The seat without some of its replicas, for a moment."""
    gone = [seat.remove(draft.items[version]) for version in versions]
    try:
        yield
    finally:
        for replica in gone:
            item, size = draft.items[replica.id], replica.memory_bytes
            seat.add(item, replica.devices, memory_bytes=size, leaving=replica.leaving)


def would_fit(draft: Draft, item: Wanted, worker: str, without: Collection[VersionId]) -> bool:
    """Whether one more replica fits on a worker once these versions have gone from it."""
    seat = draft.seats[worker]
    if item.id in seat.replicas or not any(seat.pool is pool for pool in draft.pools.eligible(item)):
        return False
    with _lifted(draft, seat, without):
        return fitting_share(item, seat, draft.domains(item.id)) is not None
