"""What a replica tells of its work: everything once, and a batch that still runs as far as it has come."""

from __future__ import annotations

import asyncio

import pytest

from services.worker.work import Work
from tests.unit.worker.doubles import EchoEngine, batcher, request


def test_each_interval_is_told_once() -> None:
    work = Work()
    assert work.taken("m", 1, 10.0) is None
    work.dequeued(2, 0.5)
    work.began(11.0)
    told = work.taken("m", 1, 14.0)
    assert told is not None
    assert (told.name, told.version, told.dequeued) == ("m", 1, 2)
    assert told.queue_seconds == 0.5
    assert told.busy_seconds == pytest.approx(3.0)
    work.ended(15.0)
    work.began(15.5)
    work.ended(16.0)
    told = work.taken("m", 1, 20.0)
    assert told is not None
    assert told.dequeued == 0
    assert told.busy_seconds == pytest.approx(1.5)
    assert work.taken("m", 1, 21.0) is None


def test_several_engines_are_busy_for_the_mean_of_their_times() -> None:
    work = Work(2)
    work.began(10.0)
    work.began(11.0)
    told = work.taken("m", 1, 14.0)
    assert told is not None
    assert told.busy_seconds == pytest.approx(3.5)
    work.ended(15.0)
    told = work.taken("m", 1, 16.0)
    assert told is not None
    assert told.busy_seconds == pytest.approx(1.5)


async def test_the_batcher_counts_batches_and_what_waits_too_long() -> None:
    gate = asyncio.Semaphore(0)
    engine = EchoEngine(gate)
    under_test = batcher(engine)
    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(under_test.run())
    first = asyncio.ensure_future(under_test.submit(request(b"a"), loop.time() + 60))
    await engine.started.acquire()
    others = [asyncio.ensure_future(under_test.submit(request(b"b"), loop.time() + 60)) for _ in range(3)]
    await asyncio.sleep(0.01)
    told = under_test.work.taken("m", 1, loop.time())
    assert told is not None
    assert told.dequeued == 1
    assert told.busy_seconds > 0
    gate.release()
    gate.release()
    await asyncio.gather(first, *others)
    serving.cancel()
    told = under_test.work.taken("m", 1, loop.time())
    assert told is not None
    assert told.dequeued == 3
    assert told.queue_seconds >= 3 * 0.01
