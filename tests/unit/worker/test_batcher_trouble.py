"""What the batcher does about the two errors on which a worker acts: too little memory, and a lost device."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from penstock.errors import PenstockError, ResourceExhausted, Unavailable
from penstock.internal.v1 import engine_pb2
from services.worker.engines.engine import DeviceLost, OutOfMemory
from services.worker.instance import Instance
from tests.unit.worker.doubles import EchoEngine, batcher, request
from tests.unit.worker.test_batcher import answer, ends_with, held, later, queued, running


def full(most: int, first: int = 1) -> EchoEngine:
    """Has memory for so many rows, from the batch of that number on."""

    def behave(number: int, rows: list[bytes]) -> dict[int, PenstockError]:
        if number >= first and len(rows) > most:
            raise OutOfMemory("the engine has not enough memory for this batch")
        return {}

    return EchoEngine(asyncio.Semaphore(0), behave)


def release(engine: EchoEngine, times: int) -> None:
    assert engine._gate is not None
    for _ in range(times):
        engine._gate.release()


async def test_a_batch_that_does_not_fit_is_run_in_two_halves_and_everybody_is_answered() -> None:
    engine = full(2)
    under_test = batcher(engine)
    async with running(under_test) as group:
        first = await held(under_test, engine, group)
        pending = await queued(under_test, [request(data) for data in (b"a", b"b", b"c", b"d")])
        release(engine, 4)
        assert [answer(await task) for task in pending] == [b"a", b"b", b"c", b"d"]
        assert answer(await first) == b"\xff"
    assert engine.batches[1:] == [[b"a", b"b", b"c", b"d"], [b"a", b"b"], [b"c", b"d"]]
    assert engine.broken == []


async def test_a_half_that_does_not_fit_either_is_refused_and_the_other_is_answered() -> None:
    engine = full(1)
    under_test = batcher(engine)
    async with running(under_test) as group:
        await held(under_test, engine, group)
        pending = await queued(under_test, [request(b"ab", rows=2), request(b"c")])
        release(engine, 4)
        ends = [await ends_with(task) for task in pending]
        assert [type(end) for end in ends] == [OutOfMemory, type(None)]
        assert isinstance(ends[0], ResourceExhausted)
        assert ends[0].code.name == "RESOURCE_EXHAUSTED"
    assert [len(batch) for batch in engine.batches[1:]] == [3, 2, 1]


async def test_a_request_alone_is_not_tried_again() -> None:
    engine = full(1, first=0)
    under_test = batcher(engine)
    async with running(under_test):
        release(engine, 1)
        with pytest.raises(OutOfMemory):
            await under_test.submit(request(b"abc", rows=3), later())
    assert len(engine.batches) == 1


async def test_who_leaves_before_the_halves_is_not_run_again() -> None:
    engine = full(2)
    under_test = batcher(engine)
    async with running(under_test) as group:
        await held(under_test, engine, group)
        pending = await queued(under_test, [request(data) for data in (b"a", b"b", b"c")])
        release(engine, 1)
        await engine.started.acquire()
        pending[0].cancel()
        release(engine, 3)
        assert [answer(await task) for task in pending[1:]] == [b"b", b"c"]
    assert engine.batches[2:] == [[b"b"], [b"c"]]


async def test_the_other_half_is_not_forgotten_when_the_loop_is_stopped() -> None:
    engine = full(2, first=0)
    under_test = batcher(engine)
    release(engine, 1)
    pending = [asyncio.ensure_future(under_test.submit(request(data), later())) for data in (b"a", b"b", b"c", b"d")]
    await asyncio.sleep(0)
    run = asyncio.ensure_future(under_test.run())
    for _ in range(2):  # all four, then the first two of them
        await engine.started.acquire()
    run.cancel()
    assert [type(await ends_with(task)) for task in pending] == [Unavailable] * 4
    assert under_test.outstanding == 0


async def test_a_batch_that_is_stopped_on_its_way_into_the_engine_is_refused() -> None:
    class Owing(EchoEngine):
        """Still has to answer a run that nobody waits for."""

        async def begin(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef], side: int) -> None:
            self.started.release()
            await asyncio.get_running_loop().create_future()

    engine = Owing()
    under_test = batcher(engine)
    run = asyncio.ensure_future(under_test.run())
    task = asyncio.ensure_future(under_test.submit(request(b"a"), later()))
    await engine.started.acquire()
    run.cancel()
    assert isinstance(await ends_with(task), Unavailable)
    assert under_test.outstanding == 0


async def test_a_lost_device_ends_the_loop_and_whoever_waits_may_try_elsewhere() -> None:
    def behave(number: int, rows: list[bytes]) -> dict[int, PenstockError]:
        raise DeviceLost("the device is lost")

    engine = EchoEngine(asyncio.Semaphore(0), behave)
    under_test = batcher(engine)
    run = asyncio.ensure_future(under_test.run())
    tasks = [asyncio.ensure_future(under_test.submit(request(data), later())) for data in (b"a", b"bc", b"def")]
    await engine.started.acquire()
    release(engine, 1)
    with pytest.raises(DeviceLost):
        await run
    ends = [await ends_with(task) for task in tasks]
    assert all(end is not None and end.code.name == "UNAVAILABLE" and end.code.retryable for end in ends)
    assert len(engine.batches) == 1


async def test_a_check_that_meets_a_lost_device_ends_the_loop_at_once() -> None:
    async def lost() -> None:
        raise DeviceLost("the device is lost")

    engine = EchoEngine()
    engine.sick = lost
    with pytest.raises(DeviceLost):
        await Instance(engine).check(asyncio.get_running_loop().time)
