"""What to believe when workers vanish. Pure: the time is passed in.

A worker that said goodbye (draining) is gone. One that vanishes is gone after a moment. But when half of all workers or
more, and at least two, vanish within one lease, the likelier story is the store's trouble (a sick etcd has revoked
every lease before: etcd#15247): then their assignments stay for a grace, so that they find them when they are back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from penstock.internal.v1.records_pb2 import WorkerRecord


@dataclass(slots=True)
class _Absence:
    since: float
    until: float


class Absences:
    """Workers that are gone, and until when their assignments stay.

    window: seconds in which vanishings count as together; the workers' lease. grace: seconds for those. settle: seconds
    for any other, to see whether more follow.
    """

    def __init__(self, *, window: float, grace: float, settle: float) -> None:
        self._window = window
        self._grace = grace
        self._settle = settle
        self._present: set[str] | None = None
        self._goodbye: set[str] = set()
        self._absent: dict[str, _Absence] = {}

    def observe(self, live: Mapping[str, WorkerRecord], assigned: Collection[str], now: float) -> None:
        """live: records of workers by id; assigned: ids of all that have an assignment."""
        first, before = self._present is None, self._present or set()
        gone = (before | set(assigned)) - set(live) - set(self._absent) - self._goodbye
        for worker in gone:
            self._absent[worker] = _Absence(now, now + self._settle)
        self._absent = {
            worker: absence
            for worker, absence in self._absent.items()
            if worker not in live and (worker in assigned or now - absence.since <= self._window)
        }
        together = [absence for absence in self._absent.values() if now - absence.since <= self._window]
        if gone and len(together) >= 2 and len(together) >= len(live):
            # At the first look nobody knows how long they have been gone: one lease is enough to come back.
            patience = self._window if first else self._grace
            for absence in together:
                absence.until = max(absence.until, absence.since + patience)
        draining = {worker for worker, record in live.items() if record.draining}
        self._goodbye = draining | {worker for worker in self._goodbye if worker in assigned and worker not in live}
        self._present = set(live) - draining

    def held(self, now: float) -> frozenset[str]:
        """Workers that are gone and whose assignments stay."""
        return frozenset(worker for worker, absence in self._absent.items() if now < absence.until)

    def next_end(self, now: float) -> float | None:
        """Seconds until the next of them is given up; None when none is held."""
        return min((absence.until - now for absence in self._absent.values() if absence.until > now), default=None)
