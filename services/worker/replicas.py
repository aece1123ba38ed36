"""What runs on this worker: follows the assignment, level-triggered, and tells the cluster how far each replica is.

At every change of the assignment, and whenever a replica has gone, what should be is compared with what is
(`lifecycle.plan`) and the difference is started or retired. Nothing is remembered between two looks but the orders.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from penstock import signals
from penstock.cluster import keys
from penstock.cluster.membership import Membership
from penstock.internal.v1 import demand_pb2, records_pb2
from penstock.kit.log import get_logger
from penstock.kit.metrics import gauge
from penstock.v1 import cluster_pb2

from .lifecycle import Identity, Orders, Present, devices_of, plan
from .replica import Replica, Surroundings
from .serving import Standing, word_of
from .stagger import pauses

log = get_logger()


class Replicas:
    """The worker's replicas; the directory that inference looks into.

    Args:
        worker, address, unix_socket: as the cluster knows this process.
        orders: my assignment as it is now (None for none), and how often the store may have turned out older than it
            was.
        known: waits until the store has said for the first time whether there is one.
        chance: the next number drawn from [0, 1).
    """

    def __init__(
        self,
        worker: str,
        address: str,
        membership: Membership,
        orders: Callable[[], tuple[records_pb2.AssignmentRecord | None, int]],
        known: Callable[[], Awaitable[None]],
        *,
        unix_socket: str = "",
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._worker = worker
        self._address = address
        self._unix_socket = unix_socket
        self._membership = membership
        self._read_orders = orders
        self._known, self._chance = known, chance
        self._orders = Orders()
        self._replicas: dict[Identity, Replica] = {}
        self._changed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._leaving = False
        self._states = gauge(signals.WORKER_REPLICAS)
        self._reported_at = asyncio.get_running_loop().time()

    def note_change(self) -> None:
        """Says that the assignment may have changed."""
        self._changed.set()

    async def run(self, surroundings: Surroundings) -> None:
        """Follows the assignment until cancelled; then every replica is closed at once, without draining."""
        await self._known()
        found = True
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for replica in self._reconcile(surroundings, found=found):
                    group.create_task(self._keep(replica), name="replica {}@{}".format(*replica.identity))
                found = False
                await self._changed.wait()

    async def emptied(self) -> None:
        """Waits until no replica is here."""
        await self._empty.wait()

    async def leave(self) -> None:
        """Retires every replica, follows no more orders, and waits until all have drained."""
        self._leaving = True
        self._changed.set()
        await self._empty.wait()

    async def announce(self, standing: Standing, retry_seconds: float) -> None:
        """Tells the cluster how far a replica is."""
        await self._membership.put(
            keys.replica(self._worker, standing.name, standing.version),
            records_pb2.ReplicaRecord(
                worker=self._worker,
                name=standing.name,
                version=standing.version,
                state=standing.state,
                reason=standing.reason,
                address=self._address,
                retry_seconds=math.ceil(retry_seconds),
                unix_socket=self._unix_socket,
                measured_bytes=standing.measured_bytes,
                measured_device_bytes=standing.measured_device_bytes,
                load_seconds=standing.load_seconds,
            ),
        )
        self._count()

    def report(self, now: float) -> demand_pb2.ReportDemandRequest:
        """What the replicas have done since the last report, which is over with this; now: on the loop's clock."""
        serving = [standing.serving for standing in self.everything() if standing.serving is not None]
        done = [each.batcher.work.taken(each.name, each.version, now) for each in serving]
        made = demand_pb2.ReportDemandRequest(
            seconds=now - self._reported_at, versions=[each for each in done if each is not None]
        )
        self._reported_at = now
        return made

    def find(self, name: str, version: int) -> Standing | None:
        """The replica of that version, if it is assigned here."""
        replica = self._replicas.get((name, version))
        return replica.standing if replica is not None else None

    def versions(self, name: str) -> Sequence[Standing]:
        """Replicas of a model, lowest version first."""
        return [standing for standing in self.everything() if standing.name == name]

    def everything(self) -> Sequence[Standing]:
        """All replicas, by name and version."""
        return [self._replicas[identity].standing for identity in sorted(self._replicas)]

    def _reconcile(self, surroundings: Surroundings, *, found: bool) -> list[Replica]:
        """Retires what should not be here; answers what should be and is not, ready to run. found: the orders were
        there before this process."""
        record, rewinds = self._read_orders()
        if not self._orders.follow(record, rewinds):
            log.warning("stale_assignment_refused", term=record.term if record else 0)
        wanted = {} if self._leaving else self._orders.replicas
        present = {
            identity: Present(replica.assigned.manifest_digest, replica.retiring, devices_of(replica.assigned))
            for identity, replica in self._replicas.items()
        }
        steps = plan(wanted, present)
        for identity in steps.retire:
            self._replicas[identity].retire()
        drawn = pauses(len(steps.start), found=found, chance=self._chance)
        started = [Replica(each, surroundings, pause) for each, pause in zip(steps.start, drawn, strict=True)]
        for replica in started:
            self._replicas[replica.identity] = replica
            self._empty.clear()
        return started

    async def _keep(self, replica: Replica) -> None:
        """A replica from its first to its last record."""
        try:
            await replica.run()
        finally:
            del self._replicas[replica.identity]
            await self._membership.delete(keys.replica(self._worker, *replica.identity))
            if not self._replicas:
                self._empty.set()
            self._count()
            self._changed.set()

    def _count(self) -> None:
        states = Counter(replica.standing.state for replica in self._replicas.values())
        for state in cluster_pb2.ReplicaState.values():
            if state != cluster_pb2.REPLICA_STATE_UNSPECIFIED:
                self._states.labels(word_of(state)).set(states[state])
