"""Why a version runs where it does, why not elsewhere, and what would make it fit. Pure; the text is public.

Nothing is judged a second time: the plan is made as ever, and every verdict is what its own obstacles say at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from penstock.v1 import cluster_pb2 as pb

from ..snapshot import Wanted
from . import room
from .draft import Draft
from .obstacles import Kind, Obstacle, obstacle, passing, standing
from .planner import Planner
from .reasons import described, needed, size
from .seat import Seat, total

MOST_REMEDIES = 5


def explain(planner: Planner, name: str, version: int = 0) -> list[pb.PlacementExplanation]:
    """The decision on each deployed version of a model, or on one; empty when it is not deployed.

    planner: has just planned. It is as before afterwards.
    """
    items = planner.known.models.get(name, ())
    return [_explained(item, planner.draft) for item in items if version in (0, item.id.version)]


def _explained(item: Wanted, draft: Draft) -> pb.PlacementExplanation:
    placed = draft.count(item.id)
    domains = draft.domains(item.id)
    verdicts = [_verdict(item, draft, draft.seats[worker], domains) for worker in draft.seats]
    verdicts += [
        pb.WorkerVerdict(
            worker=worker,
            outcome=pb.PLACEMENT_OUTCOME_HELD,
            reason="is gone; its replica counts until it is given up",
        )
        for worker in draft.known.held
        if any(replica.id == item.id for replica in draft.known.held_replicas(worker) or ())
    ]
    return pb.PlacementExplanation(
        name=item.id.name,
        version=item.id.version,
        wanted=item.replicas,
        placed=placed,
        needs=f"{needed(item)} and engine {item.engine}",
        workers=sorted(verdicts, key=lambda verdict: verdict.worker),
        remedies=list(_remedies(item, draft, domains)) if placed < item.replicas else [],
    )


def _verdict(item: Wanted, draft: Draft, seat: Seat, domains: Mapping[str, int]) -> pb.WorkerVerdict:
    worker = seat.worker.id
    here = seat.replicas.get(item.id)
    if here is None:
        found = obstacle(item, seat, domains)
        if found is not None:
            return _with(found, worker, pb.PLACEMENT_OUTCOME_NOT_HERE, described(found, item, seat))
        text = f"has room; {'it is retiring' if item.retiring else 'every wanted replica has a place'}"
        return pb.WorkerVerdict(worker=worker, outcome=pb.PLACEMENT_OUTCOME_SPARE, reason=text)
    if not here.leaving:
        reason = _why_here(item, draft, seat)
        return pb.WorkerVerdict(worker=worker, outcome=pb.PLACEMENT_OUTCOME_HERE, reason=reason)
    draining = Obstacle(Kind.DRAINING) if seat.worker.draining else None
    found = draining or standing(item, seat.worker)
    outcome = pb.PLACEMENT_OUTCOME_LEAVING
    if found is not None:
        return _with(found, worker, outcome, f"{described(found, item, seat)}: it leaves once it is ready elsewhere")
    text = "leaves once it is ready elsewhere: the room is worth more to others, or it is better spread there"
    return pb.WorkerVerdict(worker=worker, outcome=outcome, reason=text)


def _why_here(item: Wanted, draft: Draft, seat: Seat) -> str:
    known, worker = draft.known, seat.worker
    on = f" on {', '.join(f'{item.needs.device_kind}{index}' for index, _ in seat.replicas[item.id].devices)}"
    where = f"in {worker.domain}{on if item.needs.devices else ''}, {_reserved(item, seat)} % reserved"
    told = known.told.get(worker.id, {}).get(item.id)
    if told is not None and not told.leaving:
        return f"kept: it was here before, and nothing asks it to go; {where}"
    if item.id in known.reported.get(worker.id, ()):
        return f"kept: it runs here already; {where}"
    near = seat.stays_any(item.needs.affinity)
    if near:
        return f"chosen: {near} runs here; {where}"
    return f"chosen: no worker with room had fewer copies in its failure domain, then less reserved; {where}"


def _reserved(item: Wanted, seat: Seat) -> int:
    if item.needs.devices:
        offered = sum(device.memory_bytes for device in seat.worker.devices)
        free = sum(seat.device_free.values())
    else:
        offered, free = seat.worker.memory_bytes, seat.free
    return 100 * (offered - free) // max(offered, 1)


def _with(found: Obstacle, worker: str, outcome: pb.PlacementOutcome.ValueType, reason: str) -> pb.WorkerVerdict:
    return pb.WorkerVerdict(
        worker=worker,
        outcome=outcome,
        reason=reason,
        obstacle=found.kind.value,
        subject=found.subject,
        lacking_bytes=found.lacking_bytes,
    )


def _remedies(item: Wanted, draft: Draft, domains: Mapping[str, int]) -> Iterator[str]:
    """What would help, the least first."""
    if room.is_coming(draft, item):
        yield "nothing: others are moving, and it is placed when they have left"
    found = [(seat, obstacle(item, seat, domains)) for _, seat in sorted(draft.seats.items())]
    lacks = [(f.lacking_bytes, seat.worker.id, seat, f) for seat, f in found if f is not None and f.lacking_bytes > 0]
    if lacks:
        lacking, worker, seat, what = min(lacks, key=lambda entry: entry[:2])
        if what.kind is Kind.RESERVED:
            yield f"reserve {size(lacking, up=True)} less for {what.subject} on {worker}, or free as much there"
        else:
            device = f" of {what.subject}" if what.subject else ""
            yield f"free {size(lacking, up=True)}{device} on {worker}{_by_removing(draft, seat, what)}"
    yield from list(_changes(item, found, domains))[:MOST_REMEDIES]
    labels = "".join(f", label {key}={value}" for key, value in item.needs.selector)
    yield f"add a worker with engine {item.engine}, {needed(item)} free{labels}"
    if item.replicas > sum(1 for seat, _ in found if not seat.worker.draining):
        yield "ask for fewer replicas: a worker runs one of a version at most"


def _by_removing(draft: Draft, seat: Seat, found: Obstacle) -> str:
    """The smallest replica whose going would be enough, as an example."""
    names = {f"{device.kind}{device.index}": device.index for device in seat.worker.devices}
    sizes = sorted(
        (
            dict(replica.devices).get(names[found.subject], 0) if found.subject in names else replica.memory_bytes,
            replica,
        )
        for replica in seat.replicas.values()
    )
    enough = next((replica for freed, replica in sizes if freed >= found.lacking_bytes), None)
    if enough is None:
        return ""
    pinned = ", which is pinned" if draft.items[enough.id].needs.pinned else ""
    return f": {enough.id.name}@{enough.id.version} has {size(total([enough]))} there{pinned}"


def _changes(item: Wanted, found: list[tuple[Seat, Obstacle | None]], domains: Mapping[str, int]) -> Iterator[str]:
    """Workers with room that only a word keeps it from."""
    for seat, what in found:
        if what is None or passing(item, seat, domains) is not None:
            continue
        worker, subject = seat.worker.id, what.subject
        if what.kind is Kind.TAINT:
            yield f"tolerate taint {subject}: {worker} has room"
        elif what.kind is Kind.SELECTOR:
            yield f"give {worker} the label {subject}: it has room"
        elif what.kind is Kind.ENGINE:
            yield f"install engine {subject} on {worker}: it has room"
        elif what.kind is Kind.DRAINING and standing(item, seat.worker) is None:
            yield f"keep {worker}, which drains: it has room"
