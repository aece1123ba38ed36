"""What to believe when records vanish. Pure: the time is passed in.

A replica that says goodbye (it was not READY when its record went) is gone. A READY one that vanishes is gone too, if
few others do. But when half of the workers or more, and at least two, vanish within one window, or the store has gone
back in time, the likelier story is the store's trouble: leases that a sick etcd revoked (etcd #15247), a backup put
back. Their last-known records are held and served from, until a connection to the address fails, the record comes
back, or the worker has been back for a window (it lives and has told all that it runs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord, TenantRecord
from penstock.v1 import cluster_pb2 as pb

M = TypeVar("M", DeploymentRecord, TenantRecord)

WINDOW = 10.0
"""Seconds in which vanishings count as one event; twice the time of a worker's lease."""


class History:
    """How often the store behind a mirror has gone back in time: by the mirror's own count, or because the revision
    that it shows fell, which tells of a store that came back empty."""

    def __init__(self) -> None:
        self._counted = 0
        self._revision = 0
        self._rewinds = 0

    def rewinds(self, counted: int, revision: int) -> int:
        """counted: the mirror's own count; revision: the one that it shows now."""
        if counted > self._counted or revision < self._revision:
            self._rewinds += 1
        self._counted, self._revision = counted, revision
        return self._rewinds


class ReplicaBelief:
    """Replica records as the gateway believes them."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._live: dict[str, ReplicaRecord] = {}
        self._rewinds = 0
        self._gone: dict[str, tuple[ReplicaRecord, float]] = {}  # vanished while READY, not long ago
        self._held: dict[str, ReplicaRecord] = {}
        self._back: dict[str, float] = {}  # worker with held records → since when the store knows it again
        self._disproved: dict[str, float] = {}  # address → when a connection to it failed

    @property
    def held(self) -> Mapping[str, ReplicaRecord]:
        """Records that the store no longer has and that are served from all the same."""
        return self._held

    def observe(self, live: Mapping[str, ReplicaRecord], rewinds: int, now: float) -> dict[str, ReplicaRecord]:
        """What to believe, given what the store says now; rewinds: how often it has gone back in time so far."""
        turned_back = rewinds > self._rewinds
        self._forget(now)
        vanished = {
            key: record
            for key, record in self._live.items()
            if key not in live and record.state == pb.REPLICA_STATE_READY and record.address not in self._disproved
        }
        self._gone.update({key: (record, now) for key, record in vanished.items()})
        if turned_back or self._is_mass(live):
            self._held.update({key: record for key, (record, _) in self._gone.items()})
            self._gone.clear()
        self._live, self._rewinds = dict(live), rewinds
        self._drop_what_is_told_again(now)
        return {**self._held, **self._live}

    def disprove(self, address: str, now: float) -> bool:
        """A connection to the address failed; True if something held is given up for it."""
        self._disproved[address] = now
        lost = [key for key, record in self._held.items() if record.address == address]
        for key in lost:
            del self._held[key]
        return bool(lost)

    def _forget(self, now: float) -> None:
        """Only what happened within the window counts as `at once`."""
        self._gone = {key: gone for key, gone in self._gone.items() if now - gone[1] <= self._window}
        self._disproved = {address: at for address, at in self._disproved.items() if now - at <= self._window}

    def _is_mass(self, live: Mapping[str, ReplicaRecord]) -> bool:
        present = {record.worker for record in live.values()}
        missing = {record.worker for record, _ in self._gone.values()} - present
        return len(missing) >= 2 and len(missing) >= len(present)

    def _drop_what_is_told_again(self, now: float) -> None:
        present = {record.worker for record in self._live.values()}
        # A worker that registers anew writes its records one by one, hence the window.
        self._back = {
            worker: self._back.get(worker, now)
            for worker in {record.worker for record in self._held.values()} & present
        }
        self._gone = {key: gone for key, gone in self._gone.items() if key not in self._live}
        self._held = {
            key: record
            for key, record in self._held.items()
            if key not in self._live and now - self._back.get(record.worker, now) < self._window
        }


class RegistryBelief(Generic[M]):
    """Records that the registry writes, deployments or tenants, as the gateway believes them.

    A deletion at a higher revision is believed at once. What vanishes because the store went back in time is held for
    a while: the registry, whose database is the truth, writes it again.
    """

    def __init__(self, patience: float = 60.0) -> None:
        """patience: seconds to hold a record that a store from the past does not have."""
        self._patience = patience
        self._live: dict[str, M] = {}
        self._rewinds = 0
        self._held: dict[str, tuple[M, float]] = {}

    @property
    def held(self) -> bool:
        """True while something is believed that the store does not have."""
        return bool(self._held)

    def observe(self, live: Mapping[str, M], rewinds: int, now: float) -> dict[str, M]:
        """What to believe, given what the store says now; rewinds: how often it has gone back in time so far."""
        if rewinds > self._rewinds:
            self._held.update({key: (record, now) for key, record in self._live.items()})
        self._live, self._rewinds = dict(live), rewinds
        self._held = {
            key: held for key, held in self._held.items() if key not in live and now - held[1] <= self._patience
        }
        return {**{key: record for key, (record, _) in self._held.items()}, **self._live}
