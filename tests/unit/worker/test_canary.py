"""An engine that nobody asks is asked by its batcher; one that does not answer, or not well, is given up."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import pytest

from penstock.errors import Internal, PenstockError, Unavailable
from services.worker import canary
from services.worker.batcher import Batcher
from services.worker.canary import Canary
from services.worker.instance import EngineHung
from tests.unit.worker.doubles import EchoEngine, batcher, request


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "EVERY", 0.001)
    monkeypatch.setattr(canary, "PATIENCE", 0.01)


async def lives(under_test: Batcher) -> None:
    """Until the batcher gives up its engine."""
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(under_test.watch())
        try:
            await under_test.run()
        finally:
            watching.cancel()


async def ends(under_test: Batcher) -> BaseException:
    async with asyncio.timeout(30):
        with pytest.raises(BaseExceptionGroup) as raised:
            await lives(under_test)
    return raised.value.exceptions[0]


async def test_an_engine_that_hangs_is_given_up() -> None:
    engine = EchoEngine()
    engine.sick = asyncio.Event().wait  # type: ignore[assignment]
    assert isinstance(await ends(batcher(engine)), EngineHung)
    assert engine.checks == 1


async def test_an_engine_that_fails_is_given_up_at_the_second_time() -> None:
    engine = EchoEngine()

    async def fail() -> None:
        raise Internal("the device is lost")

    engine.sick = fail
    assert isinstance(await ends(batcher(engine)), Unavailable)
    assert engine.checks == canary.FAILURES


@pytest.mark.parametrize("well", [True, False])
async def test_an_engine_that_answers_only_errors_proves_nothing_by_that(well: bool) -> None:
    def answer(number: int, rows: list[bytes]) -> dict[int, PenstockError]:
        if well:
            return {}
        raise Internal("the engine failed on this request")

    engine = EchoEngine(behave=answer)
    under_test = batcher(engine)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        serving = group.create_task(under_test.run())
        for _ in range(3):
            with nullcontext() if well else pytest.raises(Internal):
                await under_test.submit(request(b"a"), asyncio.get_running_loop().time() + 60)
            for instance in under_test._instances:
                instance.look()
                assert instance.canary.due is not well
                instance.canary.due = False
        serving.cancel()


async def test_requests_are_served_between_checks_and_a_busy_engine_is_not_checked() -> None:
    gate, checked = asyncio.Semaphore(0), asyncio.Event()
    engine = EchoEngine(gate)
    under_test = batcher(engine)

    async def seen() -> None:
        checked.set()

    engine.sick = seen
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        serving = group.create_task(lives(under_test))
        await checked.wait()
        held = group.create_task(under_test.submit(request(b"a"), asyncio.get_running_loop().time() + 60))
        await engine.started.acquire()
        before = engine.checks
        await asyncio.sleep(0.02)  # twenty pauses
        assert engine.checks == before
        gate.release()
        assert bytes((await held).outputs[0].data) == b"a"
        checked.clear()
        await checked.wait()
        serving.cancel()


def test_a_slow_model_is_asked_rarely_and_given_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked = Canary()
    assert (asked.pause, asked.limit) == (5.0, 10.0)
    asked.sang(2.0)
    assert (asked.pause, asked.limit) == (200.0, 40.0)


def test_failures_count_in_a_row() -> None:
    asked = Canary()
    assert not asked.failed()
    asked.sang(0.1)
    assert not asked.failed()
    assert asked.failed()
