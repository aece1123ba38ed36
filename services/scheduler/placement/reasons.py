"""Obstacles in words that say what would help. Pure; the text is public."""

from __future__ import annotations

from ..snapshot import Wanted
from .draft import Draft
from .obstacles import Kind, Obstacle, obstacle
from .seat import Seat

SHOWN = 8
"""Workers that a reason goes through before it only counts the rest."""


def why_unplaced(item: Wanted, missing: int, draft: Draft) -> str:
    """One sentence per worker."""
    head = f"{missing} of {item.replicas} replicas not placed: each needs {needed(item)}"
    if not draft.seats:
        return f"{head} and engine {item.engine}; no worker is there"
    domains = draft.domains(item.id)
    reasons = []
    for worker in sorted(draft.seats)[:SHOWN]:
        seat = draft.seats[worker]
        found = obstacle(item, seat, domains)
        reasons.append(f"{worker} {described(found, item, seat)}" if found else f"{worker} has room")
    if len(draft.seats) > SHOWN:
        reasons.append(f"and {len(draft.seats) - SHOWN} more")
    if item.replicas > sum(1 for seat in draft.seats.values() if not seat.worker.draining):
        reasons.append("a worker runs one replica of a version at most: ask for fewer or add workers")
    return "; ".join([head, *reasons])


def needed(item: Wanted) -> str:
    """What one replica reserves."""
    needs = item.needs
    text = size(item.memory_bytes, up=True)
    if not needs.devices:
        return text
    if needs.exclusive:
        share = "whole"
    elif needs.device_percent:
        share = f"{needs.device_percent} %"
    else:
        share = f"{size(needs.device_bytes, up=True)} each"
    return f"{text} and {needs.devices} {needs.device_kind} ({share})"


def described(found: Obstacle, item: Wanted, seat: Seat) -> str:
    """An obstacle as what is to be said of its worker."""
    worker, subject = seat.worker, found.subject
    match found.kind:
        case Kind.DRAINING:
            return "is draining"
        case Kind.RUNNING:
            return "already runs one"
        case Kind.ENGINE:
            why = worker.missing_engines.get(subject, "")
            return f"lacks engine {subject}" + (f": {why}" if why else "")
        case Kind.DEVICES:
            count = sum(device.kind == subject for device in worker.devices)
            return f"has {count} {subject} of {item.needs.devices}"
        case Kind.SELECTOR:
            return f"has no label {subject}"
        case Kind.TAINT:
            return f"has taint {subject}"
        case Kind.ANTI_AFFINITY:
            return f"runs {subject}, from which it is kept apart"
        case Kind.SPREAD:
            return f"is in {subject}, where a replica is already"
        case Kind.SHUNNED:
            return "answered it late, wrongly or not at all not long ago"
        case Kind.MEMORY:
            return f"has {size(seat.free)} free of {size(worker.memory_bytes)}"
        case Kind.EXCLUSIVE:
            return f"has too few {subject} that nobody uses"
        case Kind.DEVICE_MEMORY:
            return f"lacks {size(found.lacking_bytes, up=True)} on {subject}"
        case Kind.RESERVED:
            return f"lacks {size(found.lacking_bytes, up=True)} beside what is reserved for {subject}"


def size(count: int, *, up: bool = False) -> str:
    """Bytes for people; rounded down, or up, so that what does not fit never looks as if it did."""
    unit, name = next(pair for pair in _UNITS if count >= pair[0] or pair[0] == 1)
    tenths = -(-count * 10 // unit) if up else count * 10 // unit
    return f"{tenths // 10}.{tenths % 10} {name}".replace(".0 ", " ")


_UNITS = ((10 * 2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
