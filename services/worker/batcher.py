"""Many callers in, one engine call out. One task an engine owns it; `batching` decides, this module does.

There is one queue, however many engines a replica has: whichever is free takes the next batch, and batches begin in the
queue's order. An engine gets its next batch as soon as it has answered; the answers go out while that runs. An engine
that is lost is given up alone while another one serves.

Promises, whatever is cancelled, late or broken: every submitted request ends exactly once; it gets its own rows and
nobody else's; what fails one row fails its request alone; what fails the engine fails exactly the batch that was in it
and its loop lives on. A caller who leaves is taken out of the queue; from a running batch, his rows are dropped.
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from penstock.errors import Cancelled, DeadlineExceeded, Internal, PenstockError, Unavailable
from penstock.kit.log import get_logger
from penstock.kit.spans import Span

from .batching import BatchPolicy, BatchQueue, ServiceEstimate, Waiting, timeout_expired
from .canary import EVERY
from .codec import Request, Tensor
from .engines.engine import DeviceLost, OutOfMemory
from .flight import Batch, Flight
from .halving import halves
from .instance import HUNG, LOST, EngineHung, EngineRunner, Instance, Outcome
from .lookahead import Lookahead
from .metrics import ReplicaMetrics
from .references import unstaged
from .seat import Ended, Result, Ride, Seat
from .staging import worthwhile
from .statistics import Statistics
from .tasks import first
from .work import Work

STOPPED: Final = "the model stopped serving on this worker"
LATE: Final = 3.0

log = get_logger()


async def _not_renewed(engine: EngineRunner, problem: PenstockError) -> EngineRunner:
    raise problem


class Batcher:
    """The queue in front of one loaded replica.

    Args:
        engines: all of the same model.
        run_timeout: seconds after which an engine that does not answer counts as hung.
        renew: told of an engine that is lost, and why, while others serve; gives the one that takes its place.
    """

    def __init__(
        self,
        engines: Sequence[EngineRunner],
        policy: BatchPolicy,
        *,
        statistics: Statistics,
        metrics: ReplicaMetrics,
        run_timeout: float,
        renew: Callable[[EngineRunner, PenstockError], Awaitable[EngineRunner]] = _not_renewed,
    ) -> None:
        self._policy = policy
        self._instances = [Instance(engine, policy) for engine in engines]
        self._renew = renew
        self._statistics = statistics
        self._metrics = metrics
        self._run_timeout = run_timeout
        self._queue: BatchQueue[Seat] = BatchQueue(policy, ServiceEstimate(), len(engines))
        self._ahead = Lookahead(self._instances, self._queue)
        self.work = Work(len(engines))
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._outstanding = 0
        # When an engine is expected to be free, 0 while one is.
        self._free_at = 0.0
        self._closed: PenstockError | None = None
        self._clock = asyncio.get_running_loop().time
        metrics.queue_depth.set_function(self._queue.__len__)

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def outstanding(self) -> int:
        """Requests that wait or run."""
        return self._outstanding

    @property
    def late(self) -> bool:
        """Whether something that runs should have ended LATE seconds ago."""
        ago = self._clock() - LATE
        return any(0.0 < instance.free_at < ago for instance in self._instances)

    def enter(self, request: Request, deadline: float, ended: Ended, span: Span | None = None) -> Seat:
        """Queues a request; `ended` is told how it ended, later, unless its caller leaves before (`Seat.cancel`).

        deadline: absolute, on the loop's clock; what cannot meet it is refused, but leaving when it passes is the
        caller's business (penstock.wire.server does it). Raises the PenstockError that refuses the request.
        """
        arrived = self._clock()
        seat = Seat(self.leave, request, arrived, deadline, span)
        try:
            if self._closed is not None:
                raise copy.copy(self._closed)
            waiting = seat.waiting = self._waiting(seat)
            self._queue.admit(waiting, arrived, max(0.0, self._free_at - arrived))
        except PenstockError as error:
            self._count_failure(error.code.name, 0.0)
            raise
        seat.ended = ended
        self._outstanding += 1
        if self._outstanding == 1:
            self._idle.clear()
        if waiting.expires < deadline:
            seat.timer = asyncio.get_running_loop().call_at(waiting.expires, self._expire, waiting)
        self._arrived.set()
        if self._free_at and worthwhile(request):
            self._ahead.look()
        return seat

    def leave(self, seat: Seat) -> None:
        """The request's caller has gone: it is taken out of the queue, or its rows are dropped."""
        now = self._clock()
        self._close_seat(seat)
        self._ahead.forget(seat.request)
        seat.release()
        left = DeadlineExceeded if now >= seat.deadline else Cancelled
        self._count_failure(left.code.name, now - seat.arrived)

    async def submit(self, request: Request, deadline: float, span: Span | None = None) -> Result:
        """As `enter`, for a caller who waits; the outputs are his own. Raises the PenstockError that ended the
        request."""
        # A failure is a result too: a future that holds an exception complains when its caller has left.
        end: asyncio.Future[Result | PenstockError] = asyncio.get_running_loop().create_future()

        def ended(result: Result | PenstockError) -> None:
            if isinstance(result, Result):
                own = [Tensor(each.name, each.datatype, each.shape, bytes(each.data)) for each in result.outputs]
                result = Result(tuple(own), result.ride)
            if not end.done():
                end.set_result(result)

        seat = self.enter(request, deadline, ended, span)
        try:
            result = await end
        except asyncio.CancelledError:
            seat.cancel()
            raise
        if isinstance(result, PenstockError):
            raise result
        return result

    async def run(self) -> None:
        """Serves until cancelled. Raises what the last engine was lost by: EngineHung when it does not come back,
        DeviceLost when it said that it cannot, Unavailable when it ended or fails its checks; then nobody is left
        waiting."""
        try:
            await first(*[self._lane(instance) for instance in self._instances])
        finally:
            self.close(Unavailable(STOPPED))

    async def watch(self) -> None:
        """Has an engine checked whenever it has done nothing for a while, until cancelled; `run` does it."""
        while True:
            await asyncio.sleep(max((instance.canary.pause for instance in self._instances), default=EVERY))
            for instance in self._instances:
                instance.look()
            self._arrived.set()

    async def drained(self) -> None:
        """Waits until no request waits or runs."""
        await self._idle.wait()

    def close(self, error: PenstockError) -> None:
        """Ends every waiting request with this error at once, and every later one."""
        self._closed = self._closed or error
        for waiting in self._queue.clear():
            self._refuse(waiting.item, error)

    async def _lane(self, instance: Instance) -> None:
        """Serves with one engine and, once that is lost, with the one that takes its place. Raises what it was lost by
        when no other serves."""
        while True:
            try:
                await first(self._serve(instance), instance.ended())
            except PenstockError as error:
                problem = error
            self._instances.remove(instance)
            if not self._instances:
                self.close(Unavailable(problem.message))
                raise problem
            self._note_instances()
            instance = Instance(await self._renew(instance.engine, problem), self._policy)
            self._instances.append(instance)
            self._note_instances()

    async def _serve(self, instance: Instance) -> None:
        """Takes batch after batch while the engine lives; raises what it is lost by."""
        flight: Flight | None = None
        try:
            while flight is not None or instance.engine.alive:
                if flight is not None:
                    flight = await self._land(instance, flight)
                    continue
                self._arrived.clear()
                flight, wake = await self._next(instance)
                if flight is not None:
                    continue
                if instance.canary.due:
                    await instance.check(self._clock)
                elif wake == math.inf:
                    await self._arrived.wait()
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(wake):
                            await self._arrived.wait()
        finally:
            for half in instance.halves:
                self._refuse_all(half, Unavailable(STOPPED))
        raise Unavailable(LOST)

    def _note_instances(self) -> None:
        """How many engines there are or what they do has changed."""
        self._queue.engines = len(self._instances)
        self._free_at = min(instance.free_at for instance in self._instances)

    def _waiting(self, seat: Seat) -> Waiting[Seat]:
        request, policy = seat.request, self._policy
        return Waiting(
            seat,
            request.kind,
            request.rows,
            policy.level(request.priority),
            seat.arrived,
            seat.deadline,
            policy.expiry(seat.arrived, request.timeout),
        )

    def _expire(self, waiting: Waiting[Seat]) -> None:
        if self._queue.discard(waiting):
            self.work.dequeued(1, self._clock() - waiting.item.arrived)
            self._refuse(waiting.item, timeout_expired())

    def _close_seat(self, seat: Seat) -> None:
        """The request is over; what was kept for it is given back."""
        seat.over = True
        waiting, seat.waiting = seat.waiting, None
        if waiting is not None:
            # Seat and waiting point at each other: left so, a tensor would be kept until the collector runs.
            self._queue.discard(waiting)
        if seat.timer is not None:
            seat.timer.cancel()
        self._outstanding -= 1
        if not self._outstanding:
            self._idle.set()

    def _refuse(self, seat: Seat, error: PenstockError) -> None:
        """Ends a request with an error, unless it has ended or its caller has left."""
        if not seat.over:
            self._close_seat(seat)
            self._ahead.forget(seat.request)
            self._count_failure(error.code.name, self._clock() - seat.arrived)
            # A copy each: an exception that several callers raise would gather all their tracebacks.
            seat.tell(copy.copy(error))

    def _refuse_all(self, batch: Sequence[Waiting[Seat]], error: PenstockError) -> None:
        for waiting in batch:
            self._refuse(waiting.item, error)

    def _answer(self, seat: Seat, result: Result, now: float, now_ms: int) -> None:
        self._close_seat(seat)
        ride = result.ride
        self._statistics.success(
            seat.request.rows,
            total_ns=int((now - seat.arrived) * 1e9),
            queue_ns=int(ride.queue_seconds * 1e9),
            input_ns=ride.input_ns,
            infer_ns=ride.infer_ns,
            output_ns=ride.output_ns,
            now_ms=now_ms,
        )
        self._metrics.answered()
        self._metrics.queue_seconds.observe(ride.queue_seconds)
        seat.tell(result)

    async def _next(self, instance: Instance, *, beside: bool = False) -> tuple[Flight | None, float]:
        """Begins what a free engine should run now; without that, when to look again.

        beside: the answers of the batch before have not been given yet.
        """
        if instance.halves:
            return await self._begin(instance, instance.halves.popleft(), again=False, beside=beside), math.inf
        if not self._queue:
            return None, math.inf
        now = self._clock()
        decision = self._queue.take(now, instance.engine.costs)
        for waiting, error in decision.refused:
            self.work.dequeued(1, now - waiting.item.arrived)
            self._refuse(waiting.item, error)
        batch = decision.batch
        if not batch:
            return None, decision.wake
        self.work.dequeued(len(batch), len(batch) * now - sum([waiting.item.arrived for waiting in batch]))
        if len(self._instances) > 1:
            self._ahead.taken(by=instance)
        return await self._begin(instance, batch, again=True, beside=beside), math.inf

    async def _begin(self, instance: Instance, batch: Batch, *, again: bool, beside: bool) -> Flight:
        """Has the engine run a batch. What goes wrong with it is raised where it lands."""
        started = self._clock()
        flight = Flight(batch, started, whole=not self._policy.max_batch_size, again=again)
        instance.free_at = started + self._queue.estimate.seconds(flight.rows)
        self._note_instances()
        self.work.began(started)
        try:
            side, references = instance.staging.place([waiting.item.request for waiting in batch], beside=beside)
            for waiting in batch:
                if waiting.item.request.sources and (problem := unstaged(waiting.item.request.sources)) is not None:
                    self._refuse(waiting.item, problem)
            flight.staged_ns = int((self._clock() - started) * 1e9)
            await instance.engine.begin(flight.size, references, side)
        except asyncio.CancelledError:
            self._landed(instance, flight)
            self._refuse_all(batch, Unavailable(STOPPED))
            raise
        except Exception as problem:
            flight.problem = problem
        if self._queue:
            self._ahead.look()
        return flight

    async def _land(self, instance: Instance, flight: Flight) -> Flight | None:
        """Waits for the batch, begins the next one, then answers; what runs next, if anything does.

        Each of its requests has ended when this returns or raises. What the engine has no memory for is tried once
        more, in two halves.
        """
        failure: PenstockError = Unavailable(STOPPED)
        smaller: tuple[Batch, ...] = ()
        following: Flight | None = None
        try:
            try:
                if flight.problem is not None:
                    raise flight.problem
                async with asyncio.timeout_at(flight.started + self._run_timeout):
                    outcome = await instance.engine.finish()
            finally:
                self._landed(instance, flight)
            self._queue.estimate.observe(flight.rows, flight.took)
            if (self._queue or instance.halves) and instance.engine.alive:
                following, _ = await self._next(instance, beside=True)
            self._deliver(flight, outcome)
            instance.batches += 1
        except TimeoutError:
            failure = EngineHung(HUNG)
            raise failure from None
        except PenstockError as error:
            smaller = halves(flight.batch) if flight.again and isinstance(error, OutOfMemory) else ()
            if error.detail or smaller:
                log.warning(
                    "batch_failed", rows=flight.rows, problem=error.message, detail=error.detail, halved=bool(smaller)
                )
            failure = error
            if isinstance(error, DeviceLost):
                raise
        except Exception as error:
            log.exception("batch_failed", rows=flight.rows)
            failure = Internal("the model failed to run this request", detail=repr(error))
        finally:
            if flight.span is not None:
                flight.span.end()
            if not smaller:
                self._refuse_all(flight.batch, failure)
        instance.halves.extend(smaller)
        self._metrics.batch_seconds.observe(flight.took)
        self._metrics.batch_rows.observe(flight.rows)
        return following

    def _landed(self, instance: Instance, flight: Flight) -> None:
        now = self._clock()
        flight.took = now - flight.started
        instance.free_at = 0.0
        self._note_instances()
        self.work.ended(now)

    def _deliver(self, flight: Flight, outcome: Outcome) -> None:
        """Gives each request its own rows."""
        slicing = self._clock()
        answers = flight.answers(outcome)
        now, now_ms = self._clock(), time.time_ns() // 1_000_000
        input_ns = flight.staged_ns + outcome.preprocess_ns
        output_ns = outcome.postprocess_ns + int((now - slicing) * 1e9)
        for seat, answer in answers:
            if seat.over:
                continue
            if isinstance(answer, PenstockError):
                self._refuse(seat, answer)
            else:
                ride = Ride(flight.rows, flight.started - seat.arrived, input_ns, outcome.infer_ns, output_ns)
                self._answer(seat, Result(answer, ride), now, now_ms)
        self._statistics.batch(flight.rows, input_ns=input_ns, infer_ns=outcome.infer_ns, output_ns=output_ns)

    def _count_failure(self, code: str, seconds: float) -> None:
        self._statistics.failure(int(seconds * 1e9))
        self._metrics.failed(code)
