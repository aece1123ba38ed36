"""Which replicas to start and to retire, and whose orders to follow (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.internal.v1 import records_pb2

Identity = tuple[str, int]
"""Model name and version."""


@dataclass(frozen=True, slots=True)
class Present:
    """A replica that exists on this worker. retiring: it has been told to go and will not take orders any more."""

    manifest_digest: str
    retiring: bool
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now so that what is becomes what should be."""

    start: tuple[records_pb2.AssignedReplica, ...] = ()
    retire: tuple[Identity, ...] = ()


def plan(wanted: Mapping[Identity, records_pb2.AssignedReplica], present: Mapping[Identity, Present]) -> Plan:
    """The difference between an assignment and what is here. Asked again after every change of either.

    A version that is wanted again while its replica still drains, under another manifest digest (its catalogue was
    rebuilt) or on other devices, starts once the old replica is gone.
    """
    return Plan(
        start=tuple(assigned for identity, assigned in wanted.items() if identity not in present),
        retire=tuple(
            identity
            for identity, replica in present.items()
            if not replica.retiring and (identity not in wanted or not _is_the_same(wanted[identity], replica))
        ),
    )


def devices_of(assigned: records_pb2.AssignedReplica) -> tuple[int, ...]:
    """Indices of the devices that a replica uses."""
    return tuple(device.index for device in assigned.devices)


def _is_the_same(assigned: records_pb2.AssignedReplica, replica: Present) -> bool:
    return (assigned.manifest_digest, devices_of(assigned)) == (replica.manifest_digest, replica.devices)


class Orders:
    """The newest assignment that a leader was entitled to write.

    The highest term seen is kept in memory alone. That is enough: etcd itself refuses the writes of a leader whose term
    is over, so what a restarted worker reads first is the newest there is; the memory only guards against an older
    record being shown again by a lagging read. No record at all is no order: what runs goes on running, since absence
    may mean that the store was emptied.
    """

    def __init__(self) -> None:
        self._term = 0
        self._rewinds = 0
        self._followed: records_pb2.AssignmentRecord | None = None
        self._replicas: dict[Identity, records_pb2.AssignedReplica] = {}

    @property
    def replicas(self) -> Mapping[Identity, records_pb2.AssignedReplica]:
        """What should run here."""
        return self._replicas

    def follow(self, record: records_pb2.AssignmentRecord | None, rewinds: int) -> bool:
        """Takes a record over; False when its term is lower than one seen before.

        rewinds: how often the store turned out older than it was. Terms are revisions of the store, so its past terms
        say nothing once it has gone back.
        """
        if rewinds != self._rewinds:
            self._rewinds, self._term = rewinds, 0
        if record is None or record == self._followed:
            # Seen before the store went back, it says nothing of the terms there are now.
            return True
        if record.term < self._term:
            return False
        self._term, self._followed = record.term, record
        self._replicas = {(replica.name, replica.version): replica for replica in record.replicas}
        return True
