"""Why a version has fewer replicas than wanted, in words that say what would help. Pure; the text is public."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .snapshot import ClusterSnapshot, VersionId, Wanted, Worker

SHOWN = 8
"""Workers that a reason goes through before it only counts the rest."""


def why_unplaced(
    item: Wanted,
    missing: int,
    snapshot: ClusterSnapshot,
    running: Mapping[str, Collection[VersionId]],
    free: Mapping[str, int],
) -> str:
    """One sentence per worker. running: versions by worker in the plan; free: bytes left by worker in the plan."""
    head = f"{missing} of {item.replicas} replicas not placed: each needs {size(item.memory_bytes, up=True)}"
    engine = f" and engine {item.engine}"
    if not snapshot.workers:
        return f"{head}{engine}; no worker is there"
    ids = sorted(snapshot.workers)
    reasons = [_why_not_there(item, snapshot.workers[worker], running[worker], free[worker]) for worker in ids[:SHOWN]]
    if len(ids) > SHOWN:
        reasons.append(f"and {len(ids) - SHOWN} more")
    if item.replicas > sum(1 for worker in snapshot.workers.values() if not worker.draining):
        reasons.append("a worker runs one replica of a version at most: ask for fewer or add workers")
    return "; ".join([head, *reasons])


def size(count: int, *, up: bool = False) -> str:
    """Bytes for people; rounded down, or up, so that what does not fit never looks as if it did."""
    unit, name = next(pair for pair in _UNITS if count >= pair[0] or pair[0] == 1)
    tenths = -(-count * 10 // unit) if up else count * 10 // unit
    return f"{tenths // 10}.{tenths % 10} {name}".replace(".0 ", " ")


_UNITS = ((10 * 2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def _why_not_there(item: Wanted, worker: Worker, running: Collection[VersionId], free: int) -> str:
    if worker.draining:
        return f"{worker.id} is draining"
    if item.id in running:
        return f"{worker.id} already runs one"
    if item.engine not in worker.engines:
        why = worker.missing_engines.get(item.engine, "")
        return f"{worker.id} lacks engine {item.engine}" + (f": {why}" if why else "")
    return f"{worker.id} has {size(free)} free of {size(worker.memory_bytes)}"
