"""A process's own records in etcd, alive as long as the process is: one lease, renewed in time, taken anew when lost.

`put` and `delete` say what should be there and return at once; `run` makes it so, now or when etcd is back. What was
written is read back once in a TTL, and after every trouble: an older store may have been put in place of ours, with a
lease that still lives, or a write that nobody waited for any more may have come late. etcd's troubles never reach the
service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice

from google.protobuf.message import Message

from penstock.cluster import records
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import (
    MAX_OPERATIONS,
    MAX_REQUEST_BYTES,
    Compare,
    Delete,
    LeaseGone,
    NoSpace,
    Op,
    Put,
    batches,
    modified,
    not_older,
    size,
)
from penstock.cluster.lease import Lease
from penstock.errors import PenstockError, TooLarge
from penstock.kit.backoff import Backoff
from penstock.kit.log import get_logger

log = get_logger()


class Membership:
    """The records that this process announces.

    Args:
        ttl: seconds after which the cluster counts it as lost.
        on_anew: called when everything must be announced anew: the store has gone back in time, or has taken this
            process for lost. Either way what was known of the store's past is worth nothing; must not block.
    """

    def __init__(self, etcd: Etcd, ttl: float, on_anew: Callable[[], None] = lambda: None) -> None:
        self.anew = 0
        """How often that was."""
        self._on_anew = on_anew
        self._etcd = etcd
        self._lease = Lease(etcd, ttl)
        self._wanted: dict[str, bytes | None] = {}
        self._dirty: dict[str, None] = {}
        self._written: dict[str, int] = {}
        """Revision at which the store confirmed each record."""
        self._at_least: dict[str, int] = {}
        """The same of a record that is being written, or whose write was not answered: the store has that or a later
        one, unless it has gone back in time."""
        self._head = 0
        """The highest of them so far."""
        self._batch_bytes = MAX_REQUEST_BYTES
        self._renew_at = 0.0
        self._read_back_at = 0.0
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
                await self._pause(min(self._renew_at, self._read_back_at) - asyncio.get_running_loop().time())
            except LeaseGone:
                self._forget_lease()
            except PenstockError as problem:
                self._read_back_at = 0.0
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
        if value is not None and size(Put(key, value)) > MAX_REQUEST_BYTES:
            log.error("record_too_large", key=key, bytes=len(value), limit=MAX_REQUEST_BYTES)
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
            await self._read_back()
            while self._dirty:
                await self._write()
            self._settled.set()

    async def _renew(self) -> None:
        point = await self._lease.renew(within=self._patience())
        if point is None:
            log.warning("lease_lost")
            self._note_anew()
        else:
            self._schedule()
            if point.revision < self._head:
                log.warning("store_rewound", from_revision=self._head, to_revision=point.revision)
                self._write_all_again()
                self._note_anew()

    def _patience(self) -> float:
        """Seconds that one call may take: while the lease lasts, a member that hangs must leave time for another."""
        left = self._lease.remaining()
        return max(left / 2, 0.2) if left else self._etcd.timeout

    def _schedule(self) -> None:
        """At half of what is left, so that one lost renewal still leaves time for more."""
        self._renew_at = asyncio.get_running_loop().time() + self._lease.remaining() / 2

    def _forget_lease(self) -> None:
        log.warning("lease_lost")
        self._lease.id = 0
        self._note_anew()

    def _note_anew(self) -> None:
        self.anew += 1
        self._on_anew()

    def _write_all_again(self) -> None:
        self._dirty = dict.fromkeys(self._wanted)
        self._written.clear()
        self._at_least.clear()
        self._head = 0

    async def _read_back(self) -> None:
        """Once in a TTL: whether the store still holds what was written, as it was written; otherwise all is written
        again."""
        now = asyncio.get_running_loop().time()
        if now < self._read_back_at:
            return
        held: list[Compare] = [modified(key, revision) for key, revision in self._written.items()]
        held += [not_older(key, revision) for key, revision in self._at_least.items()]
        self._read_back_at = now + self._lease.ttl
        # A full store (etcd 3.5.1) refuses even a transaction that writes nothing; nothing could be mended there.
        with suppress(NoSpace):
            for start in range(0, len(held), MAX_OPERATIONS):
                found = await self._etcd.txn(held[start : start + MAX_OPERATIONS], (), within=self._patience())
                if not found.succeeded:
                    log.warning("records_lost", revision=found.revision)
                    self._write_all_again()
                    return self._note_anew()

    async def _write(self) -> None:
        operations: list[Op] = []
        for key in islice(self._dirty, MAX_OPERATIONS):
            value = self._wanted[key]
            operations.append(Delete(key) if value is None else Put(key, value, self._lease.id))
        batch = next(batches(operations, self._batch_bytes))
        values = {op.key: self._wanted[op.key] for op in batch}
        for key, value in values.items():
            # Not known any more until it is answered, but that it is no older; of one that is deleted, not even that.
            confirmed = self._written.pop(key, 0) or self._at_least.pop(key, 0)
            if confirmed and value is not None:
                self._at_least[key] = confirmed
        try:
            revision = (await self._etcd.txn((), batch, within=self._patience())).revision
        except TooLarge as problem:
            # This store takes less than etcd does by default. One record that it will never take must not keep the
            # others out.
            self._batch_bytes = sum(map(size, batch)) // 2
            if len(batch) == 1:
                log.error("record_too_large", key=batch[0].key, detail=problem.detail)
                self._done(values, None)
            return
        self._head = max(self._head, revision)
        self._done(values, revision)

    def _done(self, values: Mapping[str, bytes | None], revision: int | None) -> None:
        """Nothing is left to do for these, unless something else is wanted by now."""
        for key, value in values.items():
            if value is not None and revision is not None:
                self._written[key] = revision
                self._at_least.pop(key, None)
            if self._wanted[key] is value:
                del self._dirty[key]
                if value is None:
                    del self._wanted[key]

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._changed.wait()
