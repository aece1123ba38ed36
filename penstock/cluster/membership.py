"""A process's own records in etcd, alive as long as the process is: one lease, renewed in time, taken anew when lost.

`put` and `delete` say what should be there and return at once; `run` makes it so, now or when etcd is back. etcd's
troubles never reach the service.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from google.protobuf.message import Message

from penstock.cluster import records
from penstock.cluster.backoff import Backoff
from penstock.cluster.etcd import MAX_OPERATIONS, Etcd
from penstock.cluster.kv import Delete, LeaseGone, Op, Put
from penstock.cluster.lease import Lease
from penstock.errors import PenstockError
from penstock.kit.log import get_logger

log = get_logger()


class Membership:
    """The records that this process announces. ttl: seconds after which the cluster counts it as lost."""

    def __init__(self, etcd: Etcd, ttl: float) -> None:
        self._etcd = etcd
        self._lease = Lease(etcd, ttl)
        self._wanted: dict[str, bytes | None] = {}
        self._dirty: dict[str, None] = {}
        self._written = 0
        self._renew_at = 0.0
        self._left = False
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        # One step at a time: leave() must not overtake a grant whose lease it would never revoke.
        self._stepping = asyncio.Lock()

    @property
    def present(self) -> bool:
        """Whether the cluster surely still sees this process, by our own clock."""
        return self._lease.id != 0 and self._lease.remaining() > 0

    async def put(self, key: str, message: Message) -> None:
        """Announces a record, now or as soon as etcd answers. Never raises for etcd's sake."""
        self._want(key, records.to_json(message))

    async def delete(self, key: str) -> None:
        """Withdraws a record, now or as soon as etcd answers."""
        self._want(key, None)

    async def settled(self) -> None:
        """Waits until etcd holds what was put and deleted so far."""
        await self._settled.wait()

    async def run(self) -> None:
        """Keeps the records alive until cancelled or left."""
        backoff = Backoff()
        away = False
        while not self._left:
            try:
                await self._step()
                backoff.reset()
                if away:
                    log.info("membership_restored")
                away = False
                await self._pause(max(0.0, self._renew_at - asyncio.get_running_loop().time()))
            except LeaseGone:
                self._forget_lease()
            except PenstockError as problem:
                if not away:
                    log.warning("membership_at_risk", problem=problem.message, detail=problem.detail)
                away = True
                await asyncio.sleep(backoff.next())

    async def leave(self) -> None:
        """Takes all records out of etcd at once, for good. When etcd is away, the lease's end does it."""
        async with self._stepping:
            self._left = True
            self._changed.set()
            self._settled.set()
            if self._lease.id:
                try:
                    await self._etcd.revoke(self._lease.id)
                except PenstockError as problem:
                    log.warning("leave_unconfirmed", problem=problem.message, detail=problem.detail)
                self._lease.id = 0

    def _want(self, key: str, value: bytes | None) -> None:
        if self._left or self._wanted.get(key, b"") == value:
            return
        self._wanted[key] = value
        self._dirty[key] = None
        self._settled.clear()
        self._changed.set()

    async def _step(self) -> None:
        """Brings etcd up to date: the lease first, then what is not written yet."""
        async with self._stepping:
            if self._left:
                return
            self._changed.clear()
            if self._lease.id and asyncio.get_running_loop().time() >= self._renew_at:
                await self._renew()
            if not self._lease.id:
                await self._lease.take()
                self._schedule()
                self._write_all_again()
            while self._dirty:
                await self._write()
            self._settled.set()

    async def _renew(self) -> None:
        # Never longer than half of what is left, so that one member that hangs does not cost the lease.
        point = await self._lease.renew(within=max(self._lease.remaining() / 2, 0.2))
        if point is None:
            log.warning("lease_lost")
        else:
            self._schedule()
            if point.revision < self._written:
                log.warning("store_rewound", from_revision=self._written, to_revision=point.revision)
                self._write_all_again()

    def _schedule(self) -> None:
        """At half of what is left, so that one lost renewal still leaves time for more."""
        self._renew_at = asyncio.get_running_loop().time() + self._lease.remaining() / 2

    def _forget_lease(self) -> None:
        log.warning("lease_lost")
        self._lease.id = 0

    def _write_all_again(self) -> None:
        self._dirty = dict.fromkeys(self._wanted)

    async def _write(self) -> None:
        batch = {key: self._wanted[key] for key in list(self._dirty)[:MAX_OPERATIONS]}
        operations: list[Op] = [
            Delete(key) if value is None else Put(key, value, self._lease.id) for key, value in batch.items()
        ]
        self._written = (await self._etcd.txn((), operations)).revision
        for key, value in batch.items():
            if self._wanted[key] is value:
                del self._dirty[key]
                if value is None:
                    del self._wanted[key]

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
