"""While this scheduler leads: decides how many workers each pool should have, writes it down, and has it seen to.

What was decided is written first, guarded by the term, and only then is the provider asked: a scheduler that leads no
more cannot start or stop a worker. The provider is asked again and again what there is; a failure is shown and tried
again after a pause, and keeps nobody from being placed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from penstock.cluster import Term, TermOver, keys, records
from penstock.cluster.kv import Delete, Op, Put, batches
from penstock.errors import DeadlineExceeded, PenstockError
from penstock.internal.v1.records_pb2 import PoolRecord
from penstock.kit.backoff import Backoff
from penstock.kit.log import get_logger

from .fitting import LABEL, Cluster
from .machines import Course, Pace, Pool, decide
from .metrics import FleetMetrics
from .placement import Plan
from .placement.knowledge import Knowledge
from .providers import Provider

LOOK_SECONDS: Final = 1.0
"""Between two decisions: they change with time alone, and no oftener than this is worth their cost."""
CHECK_SECONDS: Final = 10.0
"""Between two questions to a provider whether all is as it was told."""
CALL_SECONDS: Final = 45.0
"""What one question or order may take; a provider's own limits are below that."""

log = get_logger()


def outlook(known: Knowledge, plan: Plan, *, unsure: bool) -> Cluster:
    """What pools are decided on, from a plan and what it was made of."""
    found = ((known.item(version), count) for version, count in plan.lacking.items())
    lacking = [(item, count) for item, count in found if item is not None]
    unsure = unsure or bool(known.held)
    return Cluster(dict(known.workers), plan.assignments, lacking, known.item, known.ready, unsure)


@dataclass(slots=True)
class _Order:
    """How far a pool is carried out. told: count that the provider has heard last; problem: why it has not."""

    told: int | None = None
    check_at: float = 0.0
    problem: str = ""
    backoff: Backoff = field(default_factory=lambda: Backoff(first=1.0, cap=60.0))


class Fleet:
    """Pools of workers and whoever provides them.

    provider: None where somebody else reads the metric and sees to it. written: records of pools as the store has them.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        pace: Pace,
        provider: Provider | None,
        written: Callable[[], Mapping[str, PoolRecord]],
        metrics: FleetMetrics,
    ) -> None:
        self._pools = tuple(pools)
        self._pace = pace
        self._provider = provider
        self._written = written
        self._metrics = metrics
        self._told: tuple[Term, Cluster] | None = None
        self._leads = asyncio.Event()
        self._term: Term | None = None
        self._courses: dict[str, Course] = {}
        self._orders: dict[str, _Order] = {}

    def note(self, term: Term, cluster: Cluster) -> None:
        """A new plan of this term."""
        self._told = term, cluster
        self._leads.set()

    def rest(self) -> None:
        """The term is over: nothing is decided until the next one's first plan."""
        self._told = None
        self._leads.clear()
        self._metrics.rest()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._leads.wait()
            if self._told is not None:
                term, cluster = self._told
                try:
                    await self._look(term, cluster)
                except TermOver:
                    self.rest()
                except PenstockError as problem:
                    log.warning("pools_wait", problem=problem.message, detail=problem.detail)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, term: Term, cluster: Cluster) -> None:
        if self._term is not term:
            self._term, self._courses = term, {}
            self._orders = {pool.name: _Order() for pool in self._pools}
        await self._begin(cluster)
        known = [pool for pool in self._pools if pool.name in self._courses]
        before, now = self._courses, asyncio.get_running_loop().time()
        self._courses = {**before, **decide(known, before, cluster, self._pace, now)}
        for pool in known:
            self._tell(pool.name, before[pool.name], cluster)
        await self._write(term)
        await asyncio.gather(*(self._carry_out(term, pool.name) for pool in known))

    async def _begin(self, cluster: Cluster) -> None:
        """Where pools stand when a term begins: as the last leader left them, else as they are."""
        for pool in self._pools:
            if pool.name in self._courses:
                continue
            record = self._written().get(keys.pool(pool.name))
            if record is not None:
                self._courses[pool.name] = Course(record.count, frozenset(record.leaving))
            elif self._provider is None:
                members = (w for w in cluster.workers.values() if w.labels.get(LABEL) == pool.name and not w.draining)
                self._courses[pool.name] = Course(sum(1 for _ in members))
            elif (size := await self._asked(pool.name, self._provider)) is not None:
                self._courses[pool.name] = Course(size)

    def _tell(self, pool: str, before: Course, cluster: Cluster) -> None:
        course = self._courses[pool]
        staying = (
            name
            for name, worker in cluster.workers.items()
            if worker.labels.get(LABEL) == pool and not worker.draining and name not in course.leaving
        )
        self._metrics.decided(pool, course.count, sum(1 for _ in staying))
        if (course.count, course.leaving) != (before.count, before.leaving):
            leaving = sorted(course.leaving)
            log.info("pool_decided", pool=pool, workers=course.count, leaving=leaving, reason=course.reason)

    async def _write(self, term: Term) -> None:
        """Writes down what differs from what the store has. Raises TermOver, or Unavailable."""
        written = self._written()
        wanted = {keys.pool(pool.name): self._record(pool) for pool in self._pools if pool.name in self._courses}
        operations: list[Op] = [
            Put(key, records.to_json(record)) for key, record in wanted.items() if written.get(key) != record
        ]
        names = {keys.pool(pool.name) for pool in self._pools}
        operations += [Delete(key) for key in written if key not in names]
        for batch in batches(operations):
            await term.write(batch)

    def _record(self, pool: Pool) -> PoolRecord:
        course = self._courses[pool.name]
        return PoolRecord(
            name=pool.name,
            count=course.count,
            leaving=sorted(course.leaving),
            reason=course.reason,
            problem=self._orders[pool.name].problem,
            least=pool.least,
            most=pool.most,
        )

    async def _carry_out(self, term: Term, pool: str) -> None:
        """Has the provider see to one pool, when that is due."""
        provider, course, order = self._provider, self._courses[pool], self._orders[pool]
        now = asyncio.get_running_loop().time()
        if provider is None or (now < order.check_at and (order.problem or order.told == course.count)):
            return
        size = await self._asked(pool, provider)
        if size is None or term.over:
            return
        if size > course.count and order.told in (None, course.count):
            # Somebody has raised it by hand; it falls as everything does, slowly.
            log.info("pool_raised", pool=pool, workers=size, decided=course.count)
            self._courses[pool] = course = replace(course, count=size)
        elif size != course.count:
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    await provider.resize(pool, course.count, sorted(course.leaving))
            except (PenstockError, TimeoutError) as problem:
                self._failed(pool, problem)
                return
            log.info("pool_resized", pool=pool, workers=course.count, before=size, leaving=sorted(course.leaving))
        order.told, order.check_at, order.problem = course.count, now + CHECK_SECONDS, ""
        order.backoff.reset()

    async def _asked(self, pool: str, provider: Provider) -> int | None:
        """How many there are; None when that is not known now."""
        if self._orders[pool].problem and asyncio.get_running_loop().time() < self._orders[pool].check_at:
            return None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await provider.size(pool)
        except (PenstockError, TimeoutError) as problem:
            self._failed(pool, problem)
            return None

    def _failed(self, pool: str, failure: PenstockError | TimeoutError) -> None:
        if isinstance(failure, TimeoutError):
            failure = DeadlineExceeded(f"no answer within {CALL_SECONDS:g} s")
        order = self._orders[pool]
        order.problem = failure.message
        pause = max(order.backoff.next(), failure.retry_after or 0.0)
        order.check_at = asyncio.get_running_loop().time() + pause
        self._metrics.failed(pool)
        log.warning(
            "pool_not_resized", pool=pool, problem=failure.message, detail=failure.detail, again_in=round(pause, 1)
        )
