"""Keeps etcd's `deployments/` and `tenants/` equal to the database, and drops retiring versions that have done their
duty.

Level-triggered: on every change here or of a replica, and every few seconds, it reads both sides and writes what
differs. It never overwrites a record of a higher generation, and every write holds only if the key is still as it was
read; so two registries on one database do no harm to each other, and etcd may be away for as long as it likes.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress

from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import Delete, KeyValue, Op, Put, absent, modified
from penstock.cluster.watch import Mirror
from penstock.errors import Internal, PenstockError, TooLarge
from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord, TenantRecord
from penstock.kit.backoff import Backoff
from penstock.kit.log import get_logger
from penstock.v1.cluster_pb2 import REPLICA_STATE_READY

from .deployment_store import Deployed, DeploymentStore
from .deployments import retired
from .tenants.store import TenantStore
from .threads import Threads

Record = DeploymentRecord | TenantRecord

log = get_logger()


class Step(enum.Enum):
    """What one key needs."""

    KEEP = "keep"
    WRITE = "write"
    DELETE = "delete"
    NEWER = "newer"
    """etcd knows a later generation than the database: somebody restored the database. Nothing is written."""


def step_for(stored: bytes | None, wanted: Record | None) -> Step:
    """Decides about one key by what etcd holds and what the database wants."""
    if wanted is None:
        return Step.KEEP if stored is None else Step.DELETE
    if stored is None:
        return Step.WRITE
    if stored == records.to_json(wanted):
        return Step.KEEP
    try:
        return Step.NEWER if records.from_json(type(wanted), stored).generation > wanted.generation else Step.WRITE
    except Internal:
        return Step.WRITE


class Projector:
    """The loop.

    Args:
        interval: seconds between two looks when nothing has changed.
    """

    def __init__(
        self,
        deployments: DeploymentStore,
        tenants: TenantStore,
        threads: Threads,
        etcd: Etcd,
        *,
        interval: float = 5.0,
    ) -> None:
        self._deployments, self._tenants = deployments, tenants
        self._threads = threads
        self._etcd = etcd
        self._interval = interval
        self._news = asyncio.Event()
        self._warned: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._equal_at = self._loop.time()

    def note_change(self) -> None:
        """Something has changed: look soon."""
        self._news.set()

    def behind(self) -> float:
        """Seconds since etcd surely held what the database said; from any thread."""
        return self._loop.time() - self._equal_at

    async def run(self, replicas: Mirror[ReplicaRecord]) -> None:
        """Projects until cancelled; failures of etcd or the database are tried again."""
        backoff = Backoff(first=0.1, cap=2.0)
        away = False
        while True:
            self._news.clear()
            try:
                await self.step(replicas)
            except PenstockError as problem:
                if not away:
                    log.warning("projection_stopped", problem=problem.message, detail=problem.detail)
                away = True
                await asyncio.sleep(backoff.next())
                continue
            if away:
                log.info("projection_resumed")
            away = False
            backoff.reset()
            await self._pause()

    async def step(self, replicas: Mirror[ReplicaRecord]) -> None:
        """One look: writes what differs, then prunes."""
        began = self._loop.time()
        # etcd first: what is written there after this read fails the condition of our write.
        stored = await self._stored(keys.TENANTS)
        tenants = await self._threads.run(self._tenants.records)
        settled = await self._project(stored, {keys.tenant(name): record for name, record in tenants.items()})
        stored = await self._stored(keys.DEPLOYMENTS)
        deployed = await self._threads.run(self._deployments.read_all)
        settled &= await self._project(stored, {keys.deployment(name): one.record for name, one in deployed.items()})
        if settled:
            self._equal_at = began
        else:
            self._news.set()
        if replicas.connected and await self._prune(deployed, replicas.records.values()):
            self._news.set()

    async def _stored(self, prefix: str) -> dict[str, KeyValue]:
        return {item.key: item for item in (await self._etcd.range(prefix)).items}

    async def _project(self, stored: Mapping[str, KeyValue], wanted: Mapping[str, Record]) -> bool:
        """Writes what differs; False when somebody else wrote at the same time."""
        settled = True
        for key in sorted({*stored, *wanted}):
            item, record = stored.get(key), wanted.get(key)
            step = step_for(None if item is None else item.value, record)
            if step in (Step.WRITE, Step.DELETE):
                settled &= await self._write(key, item, record)
            if step is Step.NEWER and key not in self._warned:
                log.error("projection_refused", key=key, reason="etcd holds a later generation than the database")
            (self._warned.add if step is Step.NEWER else self._warned.discard)(key)
        return settled

    async def _write(self, key: str, item: KeyValue | None, record: Record | None) -> bool:
        operation: Op = Delete(key) if record is None else Put(key, records.to_json(record))
        condition = absent(key) if item is None else modified(key, item.mod_revision)
        try:
            return (await self._etcd.txn([condition], [operation])).succeeded
        except TooLarge as problem:
            # Other deployments need not wait for one that no record can hold.
            log.error("projection_too_large", key=key, problem=problem.message, detail=problem.detail)
            return True

    async def _prune(self, deployed: Mapping[str, Deployed], replicas: Iterable[ReplicaRecord]) -> bool:
        """Drops what has retired; whether anything was."""
        ready: dict[str, Counter[int]] = {name: Counter() for name in deployed}
        present: dict[str, Counter[int]] = {name: Counter() for name in deployed}
        for replica in replicas:
            if replica.name in deployed:
                present[replica.name][replica.version] += 1
                ready[replica.name][replica.version] += replica.state == REPLICA_STATE_READY
        pruned = False
        for name, one in deployed.items():
            numbers = retired(one.plan, ready[name], present[name])
            if not numbers:
                continue
            if await self._threads.run(self._deployments.prune, name, one.record.generation, numbers):
                log.info("versions_retired", model=name, versions=numbers)
                pruned = True
        return pruned

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval):
                await self._news.wait()
