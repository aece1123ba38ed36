"""A call without a task is counted once, whatever ends it and however early."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import PenstockError, Unavailable
from penstock.wire.call import Answer
from services.gateway.flight import Flight
from services.gateway.upstream import Place, Upstreams
from tests.unit.gateway.doubles import FakeWorkers


class UnderWay:
    """A request at a replica."""

    def cancel(self) -> None:
        return


def flight(counted: list[str], told: list[object], wait: asyncio.Event) -> Flight:
    """A call whose second attempt waits."""

    async def go_on(address: str, failure: PenstockError) -> Answer:
        await wait.wait()
        return Answer(b"second")

    upstreams = Upstreams(FakeWorkers().connect)
    free = upstreams.free("w1:1", ("m", 1), 0.0)
    assert free is not None and isinstance(free[0], Place)
    made = Flight(
        free[0],
        lambda answer, problem: told.append(answer or problem),
        go_on,
        lambda code, problem: counted.append(code),
    )
    made.took_off(UnderWay())
    return made


@pytest.mark.parametrize("steps", [0, 1, 5])
async def test_a_caller_who_leaves_during_the_second_attempt_is_counted_once(steps: int) -> None:
    counted: list[str] = []
    told: list[object] = []
    it = flight(counted, told, asyncio.Event())
    it.landed(None, Unavailable("the replica is leaving"))
    for _ in range(steps):
        await asyncio.sleep(0)
    it.cancel()
    it.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert (counted, told) == (["CANCELLED"], [])


async def test_the_second_attempt_answers_once() -> None:
    counted: list[str] = []
    told: list[object] = []
    wait = asyncio.Event()
    it = flight(counted, told, wait)
    it.landed(None, Unavailable("the replica is leaving"))
    wait.set()
    for _ in range(5):
        await asyncio.sleep(0)
    it.cancel()
    assert counted == ["OK"]
    assert [answer.payload for answer in told if isinstance(answer, Answer)] == [b"second"]
