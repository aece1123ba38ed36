"""What etcd complains of, where people look: a metric and one line of the log.

A full etcd (NOSPACE) refuses writes and reads on, until somebody compacts, defragments and disarms the alarm; one whose
members disagree says CORRUPT. At rest nobody writes and nobody would notice, so one asks. Schedulers do, for all.
"""

from __future__ import annotations

import asyncio
from typing import Final

from penstock import signals
from penstock.cluster.etcd import Etcd
from penstock.errors import PenstockError
from penstock.kit.log import get_logger
from penstock.kit.metrics import gauge

INTERVAL: Final = 5.0
"""Seconds between two questions; the alert is to come within ten."""

MEND: Final = {
    "NOSPACE": "compact, defragment every member, then `etcdctl alarm disarm`; see docs/operations.md",
    "CORRUPT": "members hold different data: restore the cluster from a snapshot; see docs/operations.md",
}

log = get_logger()


class Alarms:
    """Asks for the life of a process. interval: seconds."""

    def __init__(self, etcd: Etcd, *, interval: float = INTERVAL) -> None:
        self._etcd = etcd
        self._interval = interval
        self._raised: frozenset[str] = frozenset()
        self._gauge = gauge(signals.SCHEDULER_ETCD_ALARM)
        for name in MEND:
            self._gauge.labels(name).set(0)

    async def run(self) -> None:
        """Until cancelled. While etcd does not answer, what it said last stands."""
        while True:
            try:
                self._tell(await self._etcd.alarms())
            except PenstockError as problem:
                log.debug("alarms_unknown", problem=problem.message, detail=problem.detail)
            await asyncio.sleep(self._interval)

    def _tell(self, raised: frozenset[str]) -> None:
        for name in sorted(raised - self._raised):
            log.error("etcd_alarm", alarm=name, mend=MEND.get(name, "see etcd's documentation"))
        for name in sorted(self._raised - raised):
            log.info("etcd_alarm_over", alarm=name)
        for name in MEND:
            self._gauge.labels(name).set(name in raised)
        self._raised = raised
