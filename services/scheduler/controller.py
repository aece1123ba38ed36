"""While this scheduler leads: wait for a change, plan what has changed, write what differs.

The records are its memory: what it has written comes back through the view like everybody's. Every write carries the
term and is refused by the store when another has begun. While etcd is away nothing is decided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

from google.protobuf.message import Message

from penstock.cluster import Election, Term, TermOver, keys, records
from penstock.cluster.kv import Delete, Op, Put, batches
from penstock.errors import PenstockError, TooLarge, Unavailable
from penstock.kit.backoff import Backoff
from penstock.kit.log import get_logger

from .fleet import Fleet, outlook
from .metrics import ControllerMetrics
from .placement import changes
from .snapshot import Replica, assignment_record, learned_record
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
        self._seen: tuple[int, int] | None = None
        """Term and rewinds of the store since everything was read."""

    async def run(self) -> None:
        """Leads whenever it is elected, until cancelled."""
        while True:
            try:
                async with self._election.lead() as term:
                    self._metrics.leads(term.number)
                    self._view.leading = True
                    await self._follow(term)
            except TermOver as over:
                log.warning("term_over", reason=over.message)
            finally:
                self._view.leading = False
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
        """One plan and the writes that it needs."""
        view = self._view
        if not view.connected:
            return
        if self._seen != (term.number, view.rewinds):
            # What leaders before us have written, or what is left in a store that went back, must be seen first.
            await view.refresh()
            self._seen = (term.number, view.rewinds)
        started = time.perf_counter()
        planned = view.plan()
        changed = changes(view.intake.planner.known, planned, only_add=view.only_add)
        held = len(view.intake.planner.known.held)
        self._metrics.planned(time.perf_counter() - started, planned.missing, held, view.judge.evicted)
        try:
            await self._write(term, changed)
            await self._remember(term)
        except Unavailable:
            # Perhaps it was written all the same.
            self._seen = None
            raise
        if self._fleet is not None:
            self._fleet.note(term, outlook(view.intake.planner.known, planned, unsure=view.only_add))

    async def _remember(self, term: Term) -> None:
        """Writes down what sizes have turned out to be, and forgets drains of workers that are gone for good."""
        operations: list[Op] = [Delete(keys.drain(worker)) for worker in self._view.forgotten_drains()]
        messages: dict[str, Message] = {}
        for version, size in sorted(self._view.intake.news().items()):
            key = keys.learned(*version)
            if size is None:
                # A store that went back in time may only seem to want it no more.
                operations += [] if self._view.only_add else [Delete(key)]
            else:
                messages[key] = learned_record(version, size)
                operations.append(Put(key, records.to_json(messages[key])))
        for batch in batches(operations):
            self._view.wrote(batch, await term.write(batch), messages)

    async def _write(self, term: Term, changed: Mapping[str, tuple[Replica, ...] | None]) -> None:
        operations: list[Op] = []
        messages: dict[str, Message] = {}
        for worker, replicas in changed.items():
            key = keys.assignment(worker)
            if replicas is None:
                operations.append(Delete(key))
            else:
                messages[key] = assignment_record(worker, replicas, term.number)
                operations.append(Put(key, records.to_json(messages[key])))
            told = None if replicas is None else [f"{item.id.name}@{item.id.version}" for item in replicas]
            log.info("assigning", worker=worker, term=term.number, replicas=told)
        for batch in batches(operations):
            try:
                self._view.wrote(batch, await term.write(batch), messages)
            except TooLarge as problem:
                # What one worker should run does not fit into a record; the others need not wait for that.
                log.error("assignment_too_large", problem=problem.message, detail=problem.detail)
            else:
                self._metrics.wrote(len(batch))
