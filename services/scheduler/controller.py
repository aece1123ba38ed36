"""While this scheduler leads: wait for a change, look, plan, write what differs. Nothing is remembered between looks.

Every write carries the term and is refused by the store when another has begun. While etcd is away nothing is decided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

from penstock.cluster import Election, Term, TermOver, keys, records
from penstock.cluster.kv import Delete, Op, Put, batches
from penstock.errors import PenstockError, TooLarge
from penstock.kit.backoff import Backoff
from penstock.kit.log import get_logger

from .fleet import Fleet, outlook
from .metrics import ControllerMetrics
from .placement import changes, plan
from .snapshot import ClusterSnapshot, Replica, assignment_record, learned_changes, learned_record
from .view import ClusterView

COALESCE = 0.02
"""Seconds to let changes gather: a worker that joins writes several records."""

log = get_logger()


class Controller:
    """Makes assignments what they should be, while it leads. fleet: is told of every plan."""

    def __init__(
        self, view: ClusterView, election: Election, metrics: ControllerMetrics, fleet: Fleet | None = None
    ) -> None:
        self._view = view
        self._election = election
        self._metrics = metrics
        self._fleet = fleet

    async def run(self) -> None:
        """Leads whenever it is elected, until cancelled."""
        while True:
            try:
                async with self._election.lead() as term:
                    self._metrics.leads(term.number)
                    await self._follow(term)
            except TermOver as over:
                log.warning("term_over", reason=over.message)
            finally:
                self._metrics.leads(0)
                if self._fleet is not None:
                    self._fleet.rest()

    async def _follow(self, term: Term) -> None:
        """Carries out the plan again after every change, and when time alone changes it."""
        backoff = Backoff()
        with self._view.listening() as changed:
            while True:
                changed.clear()
                try:
                    await self._step(term)
                    backoff.reset()
                    pause = self._view.next_look()
                except TermOver:
                    raise
                except PenstockError as problem:
                    log.warning("placement_waits", problem=problem.message, detail=problem.detail)
                    pause = backoff.next()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await changed.wait()
                await asyncio.sleep(COALESCE)

    async def _step(self, term: Term) -> None:
        """One look, one plan, the writes that it needs."""
        if not self._view.connected:
            return
        # What this or an earlier leader has written must be seen before deciding again.
        await self._view.refresh()
        started = time.perf_counter()
        snapshot = self._view.snapshot()
        planned = plan(snapshot)
        changed = changes(snapshot, planned, only_add=self._view.only_add)
        self._metrics.planned(time.perf_counter() - started, planned.missing, len(snapshot.held))
        await self._write(term, changed)
        await self._remember(term, snapshot)
        if self._fleet is not None:
            self._fleet.note(term, outlook(snapshot, planned, unsure=self._view.only_add))

    async def _remember(self, term: Term, snapshot: ClusterSnapshot) -> None:
        """Writes down what sizes have turned out to be."""
        view = self._view
        operations: list[Op] = []
        wanted = {item.id for item in snapshot.wanted}
        news = learned_changes(view.learned.records.values(), view.replicas.records.values(), wanted)
        for version, size in sorted(news.items()):
            key = keys.learned(*version)
            if size is None:
                # A store that went back in time may only seem to want it no more.
                operations += [] if view.only_add else [Delete(key)]
            else:
                operations.append(Put(key, records.to_json(learned_record(version, size))))
        for batch in batches(operations):
            await term.write(batch)

    async def _write(self, term: Term, changed: Mapping[str, tuple[Replica, ...] | None]) -> None:
        operations: list[Op] = []
        for worker, replicas in changed.items():
            if replicas is None:
                operations.append(Delete(keys.assignment(worker)))
            else:
                record = assignment_record(worker, replicas, term.number)
                operations.append(Put(keys.assignment(worker), records.to_json(record)))
            told = None if replicas is None else [f"{item.id.name}@{item.id.version}" for item in replicas]
            log.info("assigning", worker=worker, term=term.number, replicas=told)
        for batch in batches(operations):
            try:
                await term.write(batch)
            except TooLarge as problem:
                # What one worker should run does not fit into a record; the others need not wait for that.
                log.error("assignment_too_large", problem=problem.message, detail=problem.detail)
            else:
                self._metrics.wrote(len(batch))
