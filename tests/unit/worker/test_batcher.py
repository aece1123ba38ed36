"""The batcher's promises, each against an engine that a test holds by a gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from penstock.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PenstockError,
    ResourceExhausted,
    Unavailable,
)
from penstock.tensors import pack_bytes
from services.worker import batcher as batching_loop
from services.worker import staging
from services.worker.batcher import Batcher
from services.worker.codec import Request
from services.worker.instance import EngineHung
from services.worker.seat import Result
from services.worker.statistics import Statistics
from tests.unit.worker.doubles import EchoEngine, EchoOutcome, batcher, request


def later(seconds: float = 60.0) -> float:
    return asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def running(under_test: Batcher) -> AsyncIterator[asyncio.TaskGroup]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(under_test.run())
        yield group
        task.cancel()


def answer(result: Result) -> bytes:
    (tensor,) = result.outputs
    return bytes(tensor.data)


async def ends_with(task: asyncio.Future[Result]) -> PenstockError | None:
    try:
        await task
    except PenstockError as error:
        return error
    return None


async def held(under_test: Batcher, engine: EchoEngine, group: asyncio.TaskGroup) -> asyncio.Task[Result]:
    """A request that sits in the engine until the gate lets it go."""
    task = group.create_task(under_test.submit(request(b"\xff"), later()))
    await engine.started.acquire()
    return task


async def queued(under_test: Batcher, requests: list[Request]) -> list[asyncio.Future[Result]]:
    """Requests that wait behind a held one; returns when all are in the queue."""
    before = under_test.depth
    tasks = [asyncio.ensure_future(under_test.submit(each, later())) for each in requests]
    await asyncio.sleep(0)  # each has run up to its place in the queue
    assert under_test.depth == before + len(requests)
    return [*tasks]


async def test_an_idle_engine_runs_a_lone_request_at_once() -> None:
    engine = EchoEngine()
    under_test = batcher(engine)
    async with running(under_test):
        result = await under_test.submit(request(b"abc"), later())
    assert answer(result) == b"abc"
    assert result.outputs[0].shape == (1, 3)
    assert result.ride.batch_rows == 1
    assert result.ride.queue_seconds < 0.5


async def test_what_waits_shares_the_next_batch_and_everybody_gets_his_rows() -> None:
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine)
    async with running(under_test) as group:
        first = await held(under_test, engine, group)
        tasks = await queued(under_test, [request(b"aabb", rows=2), request(b"cc"), request(b"dd")])
        gate.release()
        gate.release()
        assert [answer(await task) for task in tasks] == [b"aabb", b"cc", b"dd"]
        assert answer(await first) == b"\xff"
    assert engine.batches == [[b"\xff"], [b"aa", b"bb", b"cc", b"dd"]]
    assert {(await task).ride.batch_rows for task in tasks} == {4}


async def test_bytes_rows_of_different_lengths_come_back_to_their_owners() -> None:
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine, max_batch_size=8)
    payloads = [pack_bytes([b"x" * 300]), pack_bytes([b"", b"yy"]), pack_bytes([b"z"])]
    async with running(under_test) as group:
        await held(under_test, engine, group)
        tasks = await queued(
            under_test,
            [request(data, rows=rows, datatype="BYTES") for data, rows in zip(payloads, (1, 2, 1), strict=True)],
        )
        for _ in range(2):
            gate.release()
        assert [answer(await task) for task in tasks] == payloads
    assert len(engine.batches) == 2


async def test_a_cancelled_caller_does_not_hang_or_disturb_his_batch_mates() -> None:
    """MLServer's fault: B leaves while the batch of A, B, C runs, and C never ends."""
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine)
    async with running(under_test) as group:
        await held(under_test, engine, group)
        a, b, c = await queued(under_test, [request(b"a"), request(b"b"), request(b"c")])
        gate.release()
        await engine.started.acquire()
        b.cancel()
        gate.release()
        assert answer(await a) == b"a"
        assert answer(await c) == b"c"
        with pytest.raises(asyncio.CancelledError):
            await b


async def test_a_caller_who_leaves_the_queue_costs_no_engine_time() -> None:
    """batching.md B.5, check 4: all clients cancelled, at most one batch of work is done for them."""
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    statistics = Statistics()
    under_test = batcher(engine, statistics=statistics)
    async with running(under_test) as group:
        first = await held(under_test, engine, group)
        tasks = await queued(under_test, [request(bytes([number])) for number in range(100)])
        for task in (first, *tasks):
            task.cancel()
        for task in (first, *tasks):
            with suppress(asyncio.CancelledError):
                await task
        assert under_test.depth == 0
        assert under_test.outstanding == 0
        gate.release()
        gate.release()
        assert answer(await under_test.submit(request(b"z"), later())) == b"z"
    assert engine.batches == [[b"\xff"], [b"z"]]
    assert statistics.message("m", 1, 0).inference_stats.fail.count == 101


async def test_an_engine_gets_its_next_batch_before_the_answers_of_the_last_one_go_out() -> None:
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine)
    begun: list[tuple[bytes, int]] = []

    def ended(result: Result | PenstockError) -> None:
        assert isinstance(result, Result)
        begun.append((answer(result), len(engine.batches)))

    async with running(under_test):
        under_test.enter(request(b"a"), later(), ended)
        await engine.started.acquire()
        for data in (b"b", b"c"):
            under_test.enter(request(data), later(), ended)
        gate.release()
        await engine.started.acquire()
        gate.release()
        await under_test.drained()
    # "a" is read while the second batch runs, whose run has wiped what its own side gave before.
    assert begun == [(b"a", 2), (b"b", 2), (b"c", 2)]
    assert engine.broken == []


@pytest.mark.interpreted
async def test_rows_are_in_the_arena_before_the_engine_is_free_and_who_leaves_or_is_overtaken_is_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staging, "WORTH_BYTES", 1)
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine, priority_levels=2)
    async with running(under_test) as group:
        await held(under_test, engine, group)
        a, b, c = await queued(under_test, [request(data, priority=2) for data in (b"a", b"b", b"c")])
        await asyncio.sleep(0)
        assert bytes(engine.staging(4, 1)[:3]) == b"abc"
        b.cancel()
        with suppress(asyncio.CancelledError):
            await b
        first, last = await queued(under_test, [request(b"1", priority=1), request(b"d", priority=2)])
        await asyncio.sleep(0)
        assert bytes(engine.staging(4, 1)[:4]) == b"1acd"
        for _ in range(2):
            gate.release()
        assert [answer(await task) for task in (first, a, c, last)] == [b"1", b"a", b"c", b"d"]
    assert engine.batches == [[b"\xff"], [b"1", b"a", b"c", b"d"]]
    assert engine.broken == []


@pytest.mark.interpreted
async def test_what_another_engine_takes_is_not_held_where_it_was_copied_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "WORTH_BYTES", 1)
    gates = [asyncio.Semaphore(0), asyncio.Semaphore(0)]
    engines = [EchoEngine(gate) for gate in gates]
    under_test = batcher(*engines)
    async with running(under_test) as group:
        for engine in engines:
            await held(under_test, engine, group)
        (task,) = await queued(under_test, [request(b"a")])
        await asyncio.sleep(0)
        copied = [instance.staging._open is not None for instance in under_test._instances]
        assert sorted(copied) == [False, True]
        taker = copied.index(False)
        gates[taker].release()
        await engines[taker].started.acquire()
        assert [instance.staging._open for instance in under_test._instances] == [None, None]
        for gate in gates:
            gate.release()
        assert answer(await task) == b"a"
        await under_test.drained()
    assert engines[0].broken == engines[1].broken == []


async def test_an_engine_failure_reaches_exactly_its_own_batch_and_the_loop_lives_on() -> None:
    gate = asyncio.Semaphore(0)

    def behave(number: int, rows: list[bytes]) -> dict[int, PenstockError]:
        if number == 1:
            raise InvalidArgument("the model refuses this batch")
        return {}

    engine = EchoEngine(gate, behave)
    under_test = batcher(engine, max_batch_size=2)
    async with running(under_test) as group:
        first = await held(under_test, engine, group)
        pending = await queued(under_test, [request(data) for data in (b"a", b"b", b"c")])
        for _ in range(3):
            gate.release()
        ends = [await ends_with(task) for task in pending]
        assert [type(end) for end in ends] == [InvalidArgument, InvalidArgument, type(None)]
        assert ends[0] is not ends[1]
        assert answer(await first) == b"\xff"


async def test_an_unexpected_exception_is_internal_and_says_nothing_of_itself() -> None:
    def behave(number: int, rows: list[bytes]) -> dict[int, PenstockError]:
        raise ZeroDivisionError("secret detail")

    under_test = batcher(EchoEngine(behave=behave))
    async with running(under_test):
        with pytest.raises(Internal) as caught:
            await under_test.submit(request(b"a"), later())
    assert "secret" not in caught.value.message


async def test_a_failed_row_fails_its_request_alone() -> None:
    gate = asyncio.Semaphore(0)
    bad = InvalidArgument("not an image")

    def behave(number: int, rows: list[bytes]) -> dict[int, PenstockError]:
        return {row: bad for row, data in enumerate(rows) if data == b"!"}

    engine = EchoEngine(gate, behave)
    under_test = batcher(engine, max_batch_size=8)
    async with running(under_test) as group:
        await held(under_test, engine, group)
        pending = await queued(
            under_test, [request(b"ab", rows=2), request(b"!"), request(b"c!d", rows=3), request(b"e")]
        )
        for _ in range(2):
            gate.release()
        assert answer(await pending[0]) == b"ab"
        assert answer(await pending[3]) == b"e"
        alone, among = [await ends_with(task) for task in pending[1:3]]
        assert isinstance(alone, InvalidArgument)
        assert alone.message == "not an image"
        assert isinstance(among, InvalidArgument)
        assert among.message == "item 1: not an image"


async def test_when_every_row_failed_there_are_no_outputs_and_still_everybody_hears() -> None:
    under_test = batcher(EchoEngine(behave=lambda number, rows: {0: InvalidArgument("no")}))
    async with running(under_test):
        with pytest.raises(InvalidArgument, match="no"):
            await under_test.submit(request(b"a"), later())


async def test_a_model_without_batch_dimension_gets_requests_one_by_one_as_they_are() -> None:
    engine = EchoEngine()
    under_test = batcher(engine, max_batch_size=0)
    async with running(under_test):
        results = await asyncio.gather(
            *(under_test.submit(request(data, batched=False), later()) for data in (b"abc", b"de"))
        )
    assert [answer(result) for result in results] == [b"abc", b"de"]
    assert engine.shapes == [(3,), (2,)]


async def test_an_output_without_the_batch_dimension_fails_the_batch_instead_of_mixing_rows() -> None:
    class Reducing(EchoEngine):
        async def finish(self) -> EchoOutcome:
            outcome = await super().finish()
            (output,) = outcome.outputs
            outcome.outputs = [type(output)("y", "UINT8", (1, 1), output.data[:1])]
            return outcome

    gate = asyncio.Semaphore(0)
    engine = Reducing(gate)
    under_test = batcher(engine)
    async with running(under_test) as group:
        await held(under_test, engine, group)
        pending = await queued(under_test, [request(data) for data in (b"a", b"b")])
        for _ in range(2):
            gate.release()
        assert [type(await ends_with(task)) for task in pending] == [Internal, Internal]


async def test_a_queue_timeout_ends_promptly_while_the_engine_is_busy() -> None:
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine)
    async with running(under_test) as group:
        first = await held(under_test, engine, group)
        with pytest.raises(Unavailable, match="Request timeout expired"):
            await under_test.submit(request(b"a", timeout=0.01), later())
        assert not first.done()
        gate.release()
        await first
    assert engine.batches == [[b"\xff"]]


async def test_a_full_queue_refuses_at_once() -> None:
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine, max_queue_size=1)
    async with running(under_test) as group:
        await held(under_test, engine, group)
        await queued(under_test, [request(b"a")])
        with pytest.raises(ResourceExhausted):
            await under_test.submit(request(b"b"), later())
        for _ in range(2):
            gate.release()
        await under_test.drained()


async def test_a_late_request_never_reaches_the_engine() -> None:
    engine = EchoEngine()
    under_test = batcher(engine)
    async with running(under_test):
        with pytest.raises(DeadlineExceeded):
            await under_test.submit(request(b"a"), later(-1))
    assert engine.batches == []


async def test_closing_ends_everything_that_waits_at_once_and_what_comes_later() -> None:
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine)
    async with running(under_test) as group:
        first = await held(under_test, engine, group)
        pending = await queued(under_test, [request(data) for data in (b"a", b"b")])
        under_test.close(Unavailable("gone"))
        assert [str(await ends_with(task)) for task in pending] == ["gone", "gone"]
        with pytest.raises(Unavailable, match="gone"):
            await under_test.submit(request(b"c"), later())
        gate.release()
        assert answer(await first) == b"\xff"


async def test_stopping_the_loop_leaves_nobody_waiting() -> None:
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine)
    loop = asyncio.ensure_future(under_test.run())
    pending: list[asyncio.Future[Result]] = [asyncio.ensure_future(under_test.submit(request(b"a"), later()))]
    await engine.started.acquire()
    pending += await queued(under_test, [request(b"b")])
    loop.cancel()
    assert [type(await ends_with(task)) for task in pending] == [Unavailable, Unavailable]
    assert under_test.outstanding == 0


async def test_an_engine_that_does_not_come_back_is_given_up() -> None:
    engine = EchoEngine(asyncio.Semaphore(0))
    under_test = batcher(engine, run_timeout=0.01)
    loop = asyncio.ensure_future(under_test.run())
    running_one = asyncio.ensure_future(under_test.submit(request(b"a"), later()))
    assert isinstance(await ends_with(running_one), EngineHung)
    with pytest.raises(EngineHung):
        await loop
    with pytest.raises(Unavailable):
        await under_test.submit(request(b"b"), later())


@pytest.mark.interpreted
async def test_a_batch_that_does_not_end_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine)
    async with running(under_test) as group:
        first = await held(under_test, engine, group)
        assert not under_test.late
        monkeypatch.setattr(batching_loop, "LATE", -3600.0)
        assert under_test.late
        gate.release()
        await first
        assert not under_test.late


async def test_drained_waits_for_what_runs_and_what_waits() -> None:
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine)
    async with running(under_test) as group:
        await held(under_test, engine, group)
        await queued(under_test, [request(b"a")])
        drained = group.create_task(under_test.drained())
        gate.release()
        await engine.started.acquire()
        assert not drained.done()
        gate.release()
        await drained
        assert under_test.outstanding == 0


async def test_statistics_count_requests_rows_and_batches() -> None:
    statistics = Statistics()
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine, statistics=statistics)
    async with running(under_test) as group:
        await held(under_test, engine, group)
        await queued(under_test, [request(b"ab", rows=2), request(b"c")])
        gate.release()
        gate.release()
        await under_test.drained()
    message = statistics.message("m", 1, 0)
    assert (message.inference_count, message.execution_count) == (4, 2)
    assert message.inference_stats.success.count == 3
    assert message.inference_stats.compute_infer.ns == 3 * 20_000
    assert [each.batch_size for each in message.batch_stats] == [1, 3]
    assert message.last_inference > 1_600_000_000_000
