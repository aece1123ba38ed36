"""A gray replica is avoided, greeted, probed and taken back; other models of its worker are not touched."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import DeadlineExceeded, Internal, InvalidArgument, Unavailable
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Answer
from services.gateway.demand import Served
from services.gateway.ejection import Gray
from services.gateway.upstream import Upstreams
from tests.unit.gateway.doubles import FakeWorkers, Sent, echo, failing

DIGITS: Served = ("digits", 1)
OTHER: Served = ("other", 1)


class Setup:
    """Two workers; time moves by what a test says, also while a request is under way."""

    def __init__(self) -> None:
        self.now = 100.0
        self.took = 0.004
        self.ejections: list[str] = []
        self.workers = FakeWorkers()
        self.workers.behaviours = {"w1:1": self.answer, "w2:1": self.answer}
        self.upstreams = Upstreams(self.workers.connect, clock=lambda: self.now, on_ejected=self.ejections.append)

    async def answer(self, sent: Sent) -> Answer:
        self.now += self.took
        return await echo(sent)

    async def call(self, address: str, took: float = 0.004, served: Served = DIGITS) -> None:
        self.took = took
        await self.upstreams.call(address, served, "ModelInfer", b"x", deadline=1e9, headers={})

    async def warm(self, times: int = 30) -> None:
        for _ in range(times):
            await self.call("w1:1")
            await self.call("w2:1")

    async def hang(self) -> asyncio.Task[None]:
        """A request that w2 keeps; then w2 is found gray."""
        reached = asyncio.Event()
        self.release = asyncio.Event()

        async def hang(sent: Sent) -> Answer:
            reached.set()
            await self.release.wait()
            return await echo(sent)

        self.workers.behaviours["w2:1"] = hang
        stuck = asyncio.create_task(self.call("w2:1"))
        await reached.wait()
        self.now += 3.0
        await self.call("w1:1")
        assert self.upstreams.sweep() == []
        return stuck

    async def slow(self) -> None:
        """Requests that w2 answers late, until it is found gray."""
        for _ in range(40):
            await self.call("w1:1")
            await self.call("w2:1", 0.06)
            self.upstreams.sweep()
            if self.ejections:
                return

    def avoided(self, served: Served = DIGITS) -> bool:
        return self.upstreams.ejected("w2:1", served)


async def test_a_silent_replica_is_avoided_alone_until_it_answers() -> None:
    setup = Setup()
    await setup.warm()
    await setup.call("w2:1", served=OTHER)
    stuck = await setup.hang()
    assert setup.ejections == ["silent"]
    assert setup.avoided()
    assert not setup.avoided(OTHER)
    assert not setup.upstreams.ejected("w1:1", DIGITS)
    setup.release.set()
    await stuck
    assert not setup.avoided()


async def test_after_the_pause_a_greeting_and_then_a_probe() -> None:
    setup = Setup()
    await setup.warm()
    stuck = await setup.hang()
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    setup.now += 0.9
    assert setup.upstreams.sweep() == []
    setup.now += 0.2
    ((_, _, gray),) = setup.upstreams.sweep()
    assert setup.upstreams.sweep() == []  # it is greeted once
    assert setup.avoided()
    gray.failed(setup.now)
    setup.now += 1.9
    assert setup.upstreams.sweep() == []  # the pause is longer
    setup.now += 0.2
    assert setup.upstreams.sweep() != []
    gray.greeted()
    assert not setup.avoided()  # for the one request that probes
    setup.workers.behaviours["w2:1"] = setup.answer
    await setup.call("w2:1")
    assert not setup.avoided()
    assert setup.upstreams.free("w2:1", DIGITS, setup.now) is not None


@pytest.mark.parametrize("end", ["late", "expired", "refused"])
async def test_a_probe_that_does_not_go_well(end: str) -> None:
    setup = Setup()
    await setup.warm()
    await setup.slow()
    assert setup.ejections == ["slow"]
    setup.now += 1.1
    ((_, _, gray),) = setup.upstreams.sweep()
    gray.greeted()
    if end == "late":
        await setup.call("w2:1", 0.06)
    else:
        error = DeadlineExceeded("late") if end == "expired" else Unavailable("draining")
        setup.workers.behaviours["w2:1"] = failing(error)
        with pytest.raises(type(error)):
            await setup.call("w2:1")
    assert setup.avoided()
    setup.now += 1.1
    # A refusal says nothing of how fast it is: the next request probes again. The others begin a longer pause.
    assert setup.avoided() is (end != "refused")


async def test_a_failing_replica_is_avoided_until_a_probe_is_answered() -> None:
    setup = Setup()
    await setup.warm()
    setup.workers.behaviours["w2:1"] = failing(Internal("the engine failed on this request"))
    for _ in range(10):
        await setup.call("w1:1")
        with pytest.raises(Internal):
            await setup.call("w2:1")
    assert setup.upstreams.sweep() == []
    assert setup.ejections == ["failing"]
    assert setup.avoided()
    assert not setup.avoided(OTHER)
    setup.now += 1.1
    ((_, _, gray),) = setup.upstreams.sweep()
    gray.greeted()
    with pytest.raises(Unavailable):  # so that it is tried elsewhere
        await setup.call("w2:1")
    setup.now += 1.1
    assert setup.avoided(), "a probe that fails begins a longer pause"
    setup.now += 1.0
    ((_, _, gray),) = setup.upstreams.sweep()
    gray.greeted()
    setup.workers.behaviours["w2:1"] = setup.answer
    await setup.call("w2:1")
    assert not setup.avoided()


async def test_what_is_wrong_with_requests_is_no_fault_of_a_replica() -> None:
    setup = Setup()
    await setup.warm()
    setup.workers.behaviours["w2:1"] = failing(InvalidArgument("no such input"))
    for _ in range(30):
        await setup.call("w1:1")
        with pytest.raises(InvalidArgument):
            await setup.call("w2:1")
    assert setup.upstreams.sweep() == []
    assert setup.ejections == []


async def test_an_answer_to_what_was_sent_before_does_not_bring_a_slow_one_back() -> None:
    setup = Setup()
    await setup.warm()
    await setup.slow()
    await setup.call("w2:1")
    assert setup.avoided()


@pytest.mark.parametrize("well", [True, False])
async def test_a_replica_is_greeted_and_comes_back_when_it_is_well(well: bool) -> None:
    setup = Setup()
    await setup.warm()
    stuck = await setup.hang()
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    setup.now += 1.1
    greeted = asyncio.Event()

    async def ready(sent: Sent) -> Answer:
        assert sent.method == "ModelReady"
        assert oip.ModelReadyRequest.FromString(sent.payload) == oip.ModelReadyRequest(name="digits", version="1")
        greeted.set()
        return Answer(oip.ModelReadyResponse(ready=well).SerializeToString())

    setup.workers.behaviours["w2:1"] = ready
    watching = asyncio.create_task(setup.upstreams.watch(0.001))
    async with asyncio.timeout(30):
        await greeted.wait()
    await asyncio.sleep(0)
    assert setup.avoided() is not well
    watching.cancel()


def test_pauses_grow() -> None:
    gray, now, pauses = Gray("silent", 0.0), 0.0, []
    for _ in range(7):
        begun = now
        while not gray.greets(now):
            now += 0.5
        pauses.append(now - begun)
        gray.failed(now)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


async def test_one_that_has_gone_is_pardoned_and_its_worker_goes_on_straight() -> None:
    setup = Setup()
    await setup.warm()
    stuck = await setup.hang()
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    assert [(address, served, reason) for address, served, reason in setup.upstreams.gray()] == [
        ("w2:1", DIGITS, "silent")
    ]
    assert setup.upstreams.free("w2:1", OTHER, setup.now) is None
    setup.upstreams.pardon("w2:1", DIGITS)
    assert not setup.avoided()
    place = setup.upstreams.free("w2:1", OTHER, setup.now)
    assert place is not None
    place[0].left()
    assert setup.upstreams.sweep() == []
