"""Several engines behind one queue: batches side by side, one that is lost and what the others do meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import Internal, PenstockError, Unavailable
from services.worker import canary
from services.worker.batcher import Batcher
from services.worker.batching import BatchPolicy
from services.worker.engines.engine import DeviceLost
from services.worker.instance import HUNG, LOST, EngineRunner
from services.worker.instances import Instances
from services.worker.metrics import ReplicaMetrics
from services.worker.statistics import Statistics
from tests.unit.worker.doubles import EchoEngine, batcher, request
from tests.unit.worker.test_batcher import answer, ends_with, later, queued, running


class Spares:
    """Takes lost engines, and gives new ones when a test says so. lost: engines and why."""

    def __init__(self) -> None:
        self.lost: asyncio.Queue[tuple[EngineRunner, PenstockError]] = asyncio.Queue()
        self.new: asyncio.Queue[EchoEngine] = asyncio.Queue()

    async def renew(self, engine: EngineRunner, problem: PenstockError) -> EngineRunner:
        self.lost.put_nowait((engine, problem))
        return await self.new.get()


def renewing(spares: Spares, *engines: EchoEngine, run_timeout: float = 30.0) -> Batcher:
    return Batcher(
        engines,
        BatchPolicy(max_batch_size=2),
        statistics=Statistics(),
        metrics=ReplicaMetrics("m", 1),
        run_timeout=run_timeout,
        renew=spares.renew,
    )


async def test_batches_run_at_once_and_what_waits_goes_to_whichever_is_free_first() -> None:
    gates = asyncio.Semaphore(0), asyncio.Semaphore(0)
    one, two = (EchoEngine(gate) for gate in gates)
    under_test = batcher(one, two, max_batch_size=2)
    async with running(under_test):
        first = asyncio.ensure_future(under_test.submit(request(b"a"), later()))
        second = asyncio.ensure_future(under_test.submit(request(b"bb", rows=2), later()))
        await asyncio.gather(one.started.acquire(), two.started.acquire())
        third, fourth = await queued(under_test, [request(b"cc", rows=2), request(b"d")])
        assert under_test.outstanding == 4
        gates[1].release()
        await two.started.acquire()
        assert not first.done()
        for gate in (*gates, *gates):  # whoever is free first takes the last one
            gate.release()
        assert [answer(await each) for each in (first, second, third, fourth)] == [b"a", b"bb", b"cc", b"d"]
    assert sorted([*one.batches[:1], *two.batches[:1]]) == [[b"a"], [b"b", b"b"]]
    assert two.batches[1] == [b"c", b"c"]
    assert one.broken == two.broken == []


async def test_one_that_dies_fails_its_batch_alone_and_is_replaced() -> None:
    gates = asyncio.Semaphore(0), asyncio.Semaphore(0)
    one, two = (EchoEngine(gate) for gate in gates)
    spares = Spares()
    under_test = renewing(spares, one, two)
    async with running(under_test):
        first = asyncio.ensure_future(under_test.submit(request(b"a"), later()))
        await one.started.acquire()
        second = asyncio.ensure_future(under_test.submit(request(b"b"), later()))
        await two.started.acquire()
        (third,) = await queued(under_test, [request(b"c")])
        one.gone.set()
        assert isinstance(await ends_with(first), Unavailable)
        engine, problem = await spares.lost.get()
        assert engine is one
        assert problem.message == LOST
        gates[1].release()
        gates[1].release()
        assert [answer(await each) for each in (second, third)] == [b"b", b"c"]
        await two.started.acquire()
        fourth = asyncio.ensure_future(under_test.submit(request(b"d"), later()))
        await two.started.acquire()
        fifth = asyncio.ensure_future(under_test.submit(request(b"e"), later()))
        spare = EchoEngine()
        spares.new.put_nowait(spare)
        assert answer(await fifth) == b"e"
        assert not fourth.done()
        gates[1].release()
        assert answer(await fourth) == b"d"
    assert (one.batches, spare.batches) == ([[b"a"]], [[b"e"]])


async def test_a_dead_engine_takes_nothing_from_the_queue() -> None:
    one, two = EchoEngine(), EchoEngine()
    spares = Spares()
    under_test = renewing(spares, one, two)
    async with running(under_test):
        await asyncio.sleep(0)
        one.gone.set()
        ends = await asyncio.gather(*(under_test.submit(request(bytes([byte])), later()) for byte in range(9)))
        assert [answer(each) for each in ends] == [bytes([byte]) for byte in range(9)]
    assert one.batches == []


async def test_one_that_hangs_is_given_up_alone() -> None:
    one, two = EchoEngine(asyncio.Semaphore(0)), EchoEngine()
    spares = Spares()
    under_test = renewing(spares, one, two, run_timeout=0.5)
    async with running(under_test):
        assert isinstance(
            await ends_with(asyncio.ensure_future(under_test.submit(request(b"a"), later()))), Unavailable
        )
        engine, problem = await spares.lost.get()
        assert (engine, problem.message) == (one, HUNG)
        assert answer(await under_test.submit(request(b"b"), later())) == b"b"


async def test_when_no_engine_is_left_nobody_is_left_waiting() -> None:
    one, two = (EchoEngine(asyncio.Semaphore(0)) for _ in range(2))
    spares = Spares()
    under_test = renewing(spares, one, two)
    serving = asyncio.ensure_future(under_test.run())
    requests = [asyncio.ensure_future(under_test.submit(request(b"aa", rows=2), later())) for _ in range(5)]
    await asyncio.gather(one.started.acquire(), two.started.acquire())
    one.gone.set()
    await spares.lost.get()
    two.gone.set()
    assert all([isinstance(await ends_with(each), Unavailable) for each in requests])
    with pytest.raises(Unavailable, match="ended unexpectedly"):
        await serving
    with pytest.raises(Unavailable, match="ended unexpectedly"):
        await under_test.submit(request(b"b"), later())


async def test_each_is_checked_also_while_another_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "EVERY", 0.001)
    busy, idle, sick = EchoEngine(asyncio.Semaphore(0)), EchoEngine(), EchoEngine()
    seen = asyncio.Event()

    async def note() -> None:
        seen.set()

    async def fail() -> None:
        raise Internal("it computes nonsense")

    spares = Spares()
    under_test = renewing(spares, busy, idle, sick)
    async with running(under_test):
        held = asyncio.ensure_future(under_test.submit(request(b"a"), later()))
        await busy.started.acquire()
        idle.sick, sick.sick = note, fail
        watching = asyncio.ensure_future(under_test.watch())
        await seen.wait()
        engine, _ = await spares.lost.get()
        assert engine is sick
        assert (busy.checks, sick.checks) == (0, canary.FAILURES)
        watching.cancel()
        held.cancel()


# --- starting and replacing them --------------------------------------------------------------------------------------


class Yard:
    """Starts engines. problems: what the next starts raise, in turn; told: what failed, and how long the pause is."""

    def __init__(self) -> None:
        self.engines: list[EchoEngine] = []
        self.problems: list[Exception] = []
        self.told: list[tuple[str, float]] = []

    async def start(self) -> EchoEngine:
        await asyncio.sleep(0)
        if self.problems:
            raise self.problems.pop(0)
        self.engines.append(EchoEngine())
        return self.engines[-1]

    async def failed(self, problem: PenstockError, seconds: float) -> None:
        self.told.append((problem.message, seconds))

    def instances(self) -> Instances:
        return Instances(self.start, self.failed, 0.001)


async def test_they_are_started_together_and_counted_together() -> None:
    yard = Yard()
    instances = yard.instances()
    await instances.start(3)
    assert list(instances.hosts) == yard.engines
    assert instances.memory_bytes == 36
    await instances.close()
    assert [engine.closed for engine in yard.engines] == [True] * 3
    assert instances.memory_bytes == 0


async def test_when_one_does_not_start_none_is_left_behind() -> None:
    yard = Yard()
    yard.problems = [Unavailable("no")]
    instances = yard.instances()
    with pytest.raises(Unavailable, match="no"):
        await instances.start(3)
    await instances.close()
    assert all(engine.closed for engine in yard.engines)


async def test_a_lost_one_is_closed_and_tried_again_with_growing_pauses() -> None:
    yard = Yard()
    instances = yard.instances()
    await instances.start(2)
    yard.problems = [Unavailable("not yet"), OSError("no processes"), Unavailable("not yet")]
    new = await instances.renew(yard.engines[0], DeviceLost("the device is lost"))
    assert list(instances.hosts) == [yard.engines[1], new]
    assert [engine.closed for engine in yard.engines] == [True, False, False]
    words = ["the device is lost", "not yet", "the engine's process could not be started", "not yet"]
    assert [message for message, _ in yard.told] == words
    assert all(0.0005 * 2**tries <= pause <= 0.001 * 2**tries for tries, (_, pause) in enumerate(yard.told))
