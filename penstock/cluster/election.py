"""One leader at a time: a key under a lease, whose create revision is the term.

    async with election.lead() as term:          # waits until we lead
        await controller.follow(term)            # cancelled before another could lead

A leader steps down at two thirds of its lease's TTL after the last renewal it asked for, by its own monotonic clock,
which runs on while the process is stopped. That alone is not safe: a write already on its way may arrive late. So every
write of a term is a transaction that etcd refuses once the leader key is another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import Delete, Op, Put, absent, created
from penstock.cluster.lease import Lease
from penstock.errors import Conflict, PenstockError
from penstock.internal.v1 import records_pb2
from penstock.kit.backoff import Backoff
from penstock.kit.log import get_logger

SURE = 2 / 3
"""Share of the TTL for which a leader acts after a renewal; the rest is margin for pauses and late timers."""

log = get_logger()


class TermOver(Conflict):
    """This process leads no longer: stop, and take part in the next election."""


class Term:
    """One term of office. number: create revision of the leader key; grows with every term in one store's history."""

    def __init__(self, etcd: Etcd, key: str, number: int, ends: float) -> None:
        self.number = number
        self.ends = ends
        """Loop time at which it is over unless renewed before."""
        self._etcd = etcd
        self._key = key

    @property
    def over(self) -> bool:
        """Whether it may be over, by our own clock. Once true, always true."""
        return asyncio.get_running_loop().time() >= self.ends

    async def put(self, key: str, value: bytes) -> int:
        """Writes a key as leader; the revision. Raises TermOver, or Unavailable when the outcome is unknown."""
        return await self.write([Put(key, value)])

    async def delete(self, key: str) -> int:
        """Deletes a key as leader; the revision. Raises TermOver, or Unavailable when the outcome is unknown."""
        return await self.write([Delete(key)])

    async def write(self, operations: Sequence[Op]) -> int:
        """Several as one step, at most one of `kv.batches`. Raises as `put`."""
        if self.over:
            raise TermOver("the term is over")
        result = await self._etcd.txn([created(self._key, self.number)], operations)
        if not result.succeeded:
            self.end()
            raise TermOver("another term has begun")
        return result.revision

    def end(self) -> None:
        """Gives it up."""
        self.ends = min(self.ends, asyncio.get_running_loop().time())


class Election:
    """Takes part in the election of a leader.

    Args:
        record: who we are; what others read under the leader key.
        ttl: seconds of the lease; failover after a crash takes up to that long.
    """

    def __init__(
        self, etcd: Etcd, record: records_pb2.LeaderRecord, ttl: float = 5.0, *, key: str = keys.LEADER
    ) -> None:
        self._etcd = etcd
        self._value = records.to_json(record)
        self._ttl = ttl
        self._key = key
        self._lease = Lease(etcd, ttl)

    @asynccontextmanager
    async def lead(self) -> AsyncIterator[Term]:
        """Waits until this process leads, through all of etcd's troubles; the body is the term.

        The body is cancelled when the term may be over, and TermOver raised in place of it. Leaving the body in any
        way hands over at once, by deleting the leader key and the lease.
        """
        term = await self._campaign()
        log.info("term_began", term=term.number)
        renewal: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout_at(term.ends) as limit:
                renewal = asyncio.create_task(self._renew(term, limit), name="renew_term")
                yield term
        except TimeoutError:
            if limit.expired():
                raise TermOver("the term could not be renewed in time") from None
            raise
        finally:
            term.end()
            if renewal is not None:
                await _ended(renewal)
            await self._resign()
            log.info("term_ended", term=term.number)

    async def _campaign(self) -> Term:
        backoff, waits = Backoff(), False
        while True:
            try:
                if term := await self._try():
                    return term
                backoff.reset()
                waits = False
            except PenstockError as problem:
                if not waits:  # once, however often it is tried
                    log.warning("election_waits", problem=problem.message, detail=problem.detail)
                waits = True
                await asyncio.sleep(backoff.next())
            except asyncio.CancelledError:
                await self._resign()
                raise

    async def _try(self) -> Term | None:
        """One try: waits while another leads, then takes the key if it is first."""
        now = await self._etcd.range(self._key)
        held = next((item for item in now.items if item.key == self._key), None)
        if held is not None and self._lease.id and held.lease == self._lease.id:
            # Ours, from a term that we had to give up or a write of unknown outcome: we do not act on it, so it can go.
            await self._etcd.revoke(held.lease)
            return None
        if held is not None:
            await self._until_free(now.revision)
        await self._lease.take()
        won = await self._etcd.txn([absent(self._key)], [Put(self._key, self._value, self._lease.id)])
        term = Term(self._etcd, self._key, won.revision, self._sure_until())
        if won.succeeded and not term.over:
            return term
        await self._resign()
        return None

    async def _until_free(self, seen: int) -> None:
        """Waits until the key, there at revision `seen`, is deleted."""
        async with aclosing(self._etcd.watch(self._key, seen + 1)) as stream:
            async for changes in stream:
                if any(event.key == self._key and event.value is None for event in changes.events):
                    return

    async def _renew(self, term: Term, limit: asyncio.Timeout) -> None:
        """Extends the term for as long as etcd confirms it; ends it when etcd says that it is over."""
        pause = (term.ends - asyncio.get_running_loop().time()) / 2
        while True:
            await asyncio.sleep(pause)
            left = term.ends - asyncio.get_running_loop().time()
            try:
                confirmed = await self._confirm(term, within=max(left / 2, 0.05))
            except PenstockError as problem:
                log.warning("term_at_risk", term=term.number, problem=problem.message, detail=problem.detail)
                pause = min(max(left / 4, 0.05), 0.5)
                continue
            if term.over or limit.expired():
                return
            if not confirmed:
                term.end()
                limit.reschedule(term.ends)
                return
            term.ends = self._sure_until()
            limit.reschedule(term.ends)
            pause = (term.ends - asyncio.get_running_loop().time()) / 2

    async def _confirm(self, term: Term, *, within: float) -> bool:
        if await self._lease.renew(within) is None:
            return False
        held = await self._etcd.get(self._key, within=within)
        return held is not None and held.create_revision == term.number

    def _sure_until(self) -> float:
        return self._lease.expires - self._ttl * (1 - SURE)

    async def _resign(self) -> None:
        """Ends our lease, and the leader key with it. Without an answer, the lease's end does it."""
        if not self._lease.id:
            return
        try:
            await self._etcd.revoke(self._lease.id, within=1.0)
            self._lease.id = 0
        except PenstockError as problem:
            # The id is kept: the next campaign revokes it when it finds the key still held by it.
            log.warning("resign_unconfirmed", problem=problem.message, detail=problem.detail)


async def _ended(task: asyncio.Task[None]) -> None:
    """Ends a task; raises what it raised."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
