"""Which waiting requests run next: queue, greedy rule and estimate, decided on values alone (no clock, no I/O).

The rule (docs/decisions/0006-greedy-batching.md): a free engine takes what waits, up to the largest batch, and never
waits for more unless the manifest asks for it. Promises: a batch holds one kind of request only (same tensor names,
datatypes and per-item shapes); a request is never split; requests of one priority and kind keep their order; what
cannot meet its deadline is refused before it costs engine time. All times are seconds on the caller's monotonic clock.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from penstock.errors import DeadlineExceeded, InvalidArgument, PenstockError, ResourceExhausted, Unavailable
from penstock.v1 import manifest_pb2 as pb

from .costs import UNKNOWN, Costs, fitting

T = TypeVar("T")

AGING_SECONDS = 1.0
"""Seniority that each priority level below the highest costs. A request of level 2 goes behind every request of level 1
that arrives within this time after it, and before all later ones: strict priority, but nobody starves."""

DEFAULT_QUEUE_SIZE = 1024


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How requests of one model are put together; names and meaning follow Triton's model configuration.

    max_batch_size: rows that the engine takes at once, 0 for a model without batch dimension; preferred: sizes to
    form when the queue allows it; max_delay, default_timeout: seconds; priority_levels: 1 is the highest, 0 for none.
    """

    max_batch_size: int = 0
    preferred: tuple[int, ...] = ()
    max_delay: float = 0.0
    max_queue_size: int = DEFAULT_QUEUE_SIZE
    priority_levels: int = 0
    default_priority: int = 0
    default_timeout: float = math.inf

    @classmethod
    def from_manifest(cls, batching: pb.Batching) -> BatchPolicy:
        """The policy that a published manifest asks for; absent fields mean their documented defaults."""
        return cls(
            max_batch_size=batching.max_batch_size,
            preferred=tuple(sorted(set(batching.preferred_batch_size), reverse=True)),
            max_delay=batching.max_queue_delay_microseconds / 1e6,
            max_queue_size=batching.max_queue_size or DEFAULT_QUEUE_SIZE,
            priority_levels=batching.priority_levels,
            default_priority=batching.default_priority_level,
            default_timeout=batching.default_timeout_microseconds / 1e6 or math.inf,
        )

    @property
    def capacity(self) -> int:
        """Rows of a full batch; a model without batch dimension runs one request at a time."""
        return max(1, self.max_batch_size)

    def level(self, priority: int) -> int:
        """Level of a request that asked for `priority`: 0 and levels that the model does not have mean the default."""
        if not self.priority_levels:
            return 1
        if 1 <= priority <= self.priority_levels:
            return priority
        return self.default_priority or self.priority_levels

    def expiry(self, arrived: float, timeout: float | None) -> float:
        """When a queued request expires. A request may shorten the model's default timeout, never lengthen it."""
        return arrived + min(timeout or math.inf, self.default_timeout)


class Waiting(Generic[T]):
    """A request in the queue. `kind`: equal for requests that may share a batch; `rows`: its share of a batch."""

    __slots__ = ("arrived", "deadline", "expires", "item", "kind", "level", "rank", "rows")

    def __init__(
        self,
        item: T,
        kind: Hashable,
        rows: int,
        level: int,
        arrived: float,
        deadline: float,
        expires: float = math.inf,
    ) -> None:
        self.item, self.kind, self.rows, self.level = item, kind, rows, level
        self.arrived, self.deadline, self.expires = arrived, deadline, expires
        self.rank = (arrived + (level - 1) * AGING_SECONDS, level)


Refusals: TypeAlias = list[tuple[Waiting[T], PenstockError]]


class Decision(Generic[T]):
    """What to do now: run `batch` if it is not empty, else look again at `wake` or at the next arrival."""

    __slots__ = ("batch", "refused", "wake")

    def __init__(self) -> None:
        self.batch: list[Waiting[T]] = []
        self.refused: Refusals[T] = []
        self.wake = math.inf


class ServiceEstimate:
    """Expected engine time of a batch as a + c * rows: least squares over recent batches, older ones fading away.

    Before the first batch it says 0, so that nothing is refused on no evidence. Where sizes vary too little for a
    slope it answers the mean for larger batches and a proportional part for smaller ones: never more than is known.
    """

    def __init__(self, memory: float = 0.9) -> None:
        self._memory = memory
        self._weight = self._rows = self._seconds = self._rows2 = self._product = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Counts one batch of so many rows that took so long."""
        keep = self._memory
        self._weight = self._weight * keep + 1.0
        self._rows = self._rows * keep + rows
        self._seconds = self._seconds * keep + seconds
        self._rows2 = self._rows2 * keep + rows * rows
        self._product = self._product * keep + rows * seconds

    def doubt(self) -> None:
        """Lowers the estimate. Called when it alone kept a free engine idle: a wrong one must not refuse for ever."""
        self._seconds *= 0.8
        self._product *= 0.8

    def seconds(self, rows: int) -> float:
        """Expected engine time of a batch of `rows`."""
        if not self._weight:
            return 0.0
        mean_rows, mean = self._rows / self._weight, self._seconds / self._weight
        spread = self._rows2 / self._weight - mean_rows * mean_rows
        if spread < 0.01:
            return mean * min(1.0, rows / mean_rows)
        slope = (self._product / self._weight - mean_rows * mean) / spread
        if slope <= 0:
            return mean
        start = mean - slope * mean_rows
        return start + slope * rows if start >= 0 else rows * self._product / self._rows2


class BatchQueue(Generic[T]):
    """Requests that wait for an engine. Belongs to one event loop; knows no clock: every method is told the time.

    engines: how many take batches from it side by side.
    """

    def __init__(self, policy: BatchPolicy, estimate: ServiceEstimate, engines: int = 1) -> None:
        self.engines = engines
        self.policy = policy
        self.estimate = estimate
        # Ordered dictionaries, not deques: a caller who leaves is taken out at once, wherever he stands.
        self._levels: dict[int, OrderedDict[Waiting[T], None]] = {}
        self._kinds: dict[Hashable, dict[int, OrderedDict[Waiting[T], None]]] = {}
        self._rows: dict[int, int] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __contains__(self, waiting: object) -> bool:
        return any(waiting in level for level in self._levels.values())

    def admit(self, waiting: Waiting[T], now: float, busy_for: float) -> None:
        """Queues a request. `busy_for`: expected seconds until an engine is free, 0 when one is.

        Raises InvalidArgument when it can never fit a batch, DeadlineExceeded when it is late already, and
        ResourceExhausted when the queue is full or so long that the deadline would pass in it.
        """
        policy = self.policy
        if waiting.rows > policy.capacity:
            raise InvalidArgument(
                f"the model takes at most {policy.max_batch_size} items a request (max_batch_size), got {waiting.rows}",
                field="inputs[0].shape",
            )
        if waiting.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request could be queued")
        if self._length >= policy.max_queue_size:
            raise ResourceExhausted(
                f"the model's queue is full ({policy.max_queue_size} requests wait)",
                retry_after=self._drain_time(policy.priority_levels or 1, 0, busy_for),
            )
        # An idle engine decides in take(), where a wrong estimate corrects itself.
        if self._length or busy_for > 0:
            late = now + self._drain_time(waiting.level, waiting.rows, busy_for) - waiting.deadline
            if late > 0:
                raise ResourceExhausted("the model's queue is too long for the request's deadline", retry_after=late)
        self._enter(waiting)

    def discard(self, waiting: Waiting[T]) -> bool:
        """Takes a request out, in constant time; False when it is not (or no longer) in the queue."""
        level = self._levels.get(waiting.level)
        if level is None or waiting not in level:
            return False
        del level[waiting]
        groups = self._kinds[waiting.kind]
        del groups[waiting.level][waiting]
        if not groups[waiting.level]:
            del groups[waiting.level]
            if not groups:
                del self._kinds[waiting.kind]
        self._rows[waiting.level] -= waiting.rows
        self._length -= 1
        return True

    def clear(self) -> list[Waiting[T]]:
        """Empties the queue; answers what was in it."""
        everything = [waiting for level in self._levels.values() for waiting in level]
        self._levels.clear()
        self._kinds.clear()
        self._rows.clear()
        self._length = 0
        return everything

    def upcoming(self) -> Iterator[Waiting[T]]:
        """Who would go with the next batch as things stand, in order, deadlines aside. Nobody leaves the queue, and
        nobody is promised anything: `take` decides."""
        leader, rows = self._leader(), 0
        for waiting in self._in_order(leader.kind) if leader is not None else ():
            rows += waiting.rows
            if rows > self.policy.capacity:
                return
            yield waiting

    def take(self, now: float, costs: Costs = UNKNOWN) -> Decision[T]:
        """What a free engine should do now. The batch and the refused have left the queue when this returns.

        costs: of the engine, where it runs a few sizes only.
        """
        decision: Decision[T] = Decision()
        kept_idle = False
        while (leader := self._leader()) is not None:
            batch, start, doubtful = self._form(leader.kind, now, decision.refused)
            kept_idle |= doubtful
            if not batch or batch[0] is not leader:
                continue  # it was refused, and its kind does not inherit its turn
            if start > now:
                batch, start = self._other_ready(leader.kind, now, start, decision.refused)
            if start <= now:
                batch = self._sized(batch, now, costs) if costs else batch
                for waiting in batch:
                    self.discard(waiting)
                decision.batch = batch
            else:
                decision.wake = start
            return decision
        if kept_idle:
            self.estimate.doubt()
        return decision

    def _other_ready(
        self, held: Hashable, now: float, start: float, refused: Refusals[T]
    ) -> tuple[list[Waiting[T]], float]:
        """While the leader's batch may wait for more, a batch of another kind may be complete: the first such, in order
        of rank, else nothing and the earliest time at which one may go as it is."""
        others = sorted(
            (kind for kind in self._kinds if kind != held), key=lambda kind: next(self._in_order(kind)).rank
        )
        for kind in others:
            batch, other_start, _ = self._form(kind, now, refused)
            if batch and other_start <= now:
                return batch, other_start
            if batch:
                start = min(start, other_start)
        return [], start

    def _form(self, kind: Hashable, now: float, refused: Refusals[T]) -> tuple[list[Waiting[T]], float, bool]:
        """The batch of one kind as it would run now, when to start it, and whether the estimate refused somebody."""
        capacity, estimate = self.policy.capacity, self.estimate
        batch: list[Waiting[T]] = []
        late: Refusals[T] = []
        rows, earliest, complete, doubtful = 0, math.inf, False, False
        for waiting in self._in_order(kind):
            if waiting.expires <= now:
                late.append((waiting, timeout_expired()))
                continue
            total = rows + waiting.rows
            if total > capacity:
                complete = True  # nobody smaller overtakes it: large requests must not starve
                break
            finish = now + estimate.seconds(total)
            if finish > waiting.deadline:
                doubtful |= waiting.deadline > now
                late.append((waiting, DeadlineExceeded("the deadline would pass before the model could answer")))
                continue
            if finish > earliest:
                complete = True  # one more would make an earlier request late
                break
            batch.append(waiting)
            rows, earliest = total, min(earliest, waiting.deadline)
            if rows == capacity:
                complete = True
                break
        for waiting, _ in late:
            self.discard(waiting)
        refused.extend(late)
        batch, start = self._settle(batch, complete, earliest, now)
        return batch, start, doubtful

    def _settle(
        self, batch: list[Waiting[T]], complete: bool, earliest: float, now: float
    ) -> tuple[list[Waiting[T]], float]:
        """Triton's rule for preferred sizes and queue delay: the largest preferred size that whole requests add up to
        goes now; else a batch that cannot grow; else what there is when its oldest request has waited the delay."""
        sizes: dict[int, int] = {}
        rows = 0
        for count, waiting in enumerate(batch, start=1):
            rows += waiting.rows
            sizes[rows] = count
        for size in self.policy.preferred:
            if size in sizes:
                return batch[: sizes[size]], now
        if complete or not self.policy.max_delay or not batch:
            return batch, now
        # Twice the estimate, so that waiting for company does not make the deadline fail by a hair.
        latest = earliest - 2 * self.estimate.seconds(rows)
        return batch, min(min(waiting.arrived for waiting in batch) + self.policy.max_delay, latest)

    def _sized(self, batch: list[Waiting[T]], now: float, costs: Costs) -> list[Waiting[T]]:
        """The batch, or its first requests where a smaller size does more for its time than padding would: the rest
        stays in the queue, and later ones join it. Nobody becomes late by that; a preferred size stays as it is."""
        sizes = [waiting.rows for waiting in batch]
        count, total = fitting(sizes, costs), sum(sizes)
        if count == len(batch) or total in self.policy.preferred:
            return batch
        kept = sum(sizes[:count])
        later = now + self.estimate.seconds(kept) + self.estimate.seconds(total - kept)
        return batch if later > min(waiting.deadline for waiting in batch[count:]) else batch[:count]

    def _enter(self, waiting: Waiting[T]) -> None:
        number = waiting.level
        level = self._levels.get(number)
        if level is None:
            level = self._levels[number] = OrderedDict()
        level[waiting] = None
        groups = self._kinds.get(waiting.kind)
        if groups is None:
            groups = self._kinds[waiting.kind] = {}
        group = groups.get(number)
        if group is None:
            group = groups[number] = OrderedDict()
        group[waiting] = None
        self._rows[number] = self._rows.get(number, 0) + waiting.rows
        self._length += 1

    def _leader(self) -> Waiting[T] | None:
        """The request with the best rank: its kind runs next."""
        heads = [next(iter(level)) for level in self._levels.values() if level]
        return min(heads, key=lambda waiting: waiting.rank) if heads else None

    def _in_order(self, kind: Hashable) -> Iterator[Waiting[T]]:
        """Requests of one kind by rank; inside a level, as they came."""
        return heapq.merge(*self._kinds[kind].values(), key=lambda waiting: waiting.rank)

    def _drain_time(self, level: int, rows: int, busy_for: float) -> float:
        """Expected seconds until everything of this level and above has run, and `rows` more after it."""
        capacity = self.policy.capacity
        ahead = sum(count for other, count in self._rows.items() if other <= level)
        full, rest = divmod(ahead, capacity)
        last = min(capacity, rest + rows)
        # Full batches run side by side, the last one beside the last of them.
        rounds = full // self.engines if last else -(-full // self.engines)
        return busy_for + rounds * self.estimate.seconds(capacity) + (self.estimate.seconds(last) if last else 0.0)


def timeout_expired() -> Unavailable:
    """Triton's answer to a request whose queue timeout ran out, word for word: clients look for it."""
    return Unavailable("Request timeout expired")
