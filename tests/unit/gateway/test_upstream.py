"""Connections are opened late, counted, avoided after evidence, closed when nothing leads there."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from penstock.wire.call import Answer
from penstock.wire.client import ConnectionLost
from services.gateway.demand import Served
from services.gateway.upstream import Upstreams
from tests.unit.gateway.doubles import FakeWorkers, Sent, echo, failing

DIGITS: Served = ("digits", 1)
OTHER: Served = ("other", 1)


class Setup:
    def __init__(self) -> None:
        self.now = 0.0
        self.lost: list[str] = []
        self.workers = FakeWorkers()
        self.workers.behaviours["w1:1"] = echo
        self.ejections: list[str] = []
        self.upstreams = Upstreams(
            self.workers.connect, clock=lambda: self.now, on_lost=self.lost.append, on_ejected=self.ejections.append
        )

    async def call(self, served: Served = DIGITS) -> Answer:
        return await self.upstreams.call("w1:1", served, "ModelInfer", b"x", deadline=99.0, headers={})


async def test_opened_once_and_late() -> None:
    setup = Setup()
    assert setup.workers.opened == []
    await setup.call()
    await setup.call()
    assert setup.workers.opened == ["w1:1"]


async def test_outstanding_is_counted_also_when_the_caller_leaves() -> None:
    setup, reached = Setup(), asyncio.Event()

    async def hang(sent: Sent) -> Answer:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    setup.workers.behaviours["w1:1"] = hang
    task = asyncio.create_task(setup.call())
    await reached.wait()
    assert setup.upstreams.outstanding("w1:1") == setup.upstreams.in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert setup.upstreams.outstanding("w1:1") == 0


async def test_a_lost_connection_ejects_the_worker_for_every_model() -> None:
    setup = Setup()
    setup.workers.behaviours["w1:1"] = failing(ConnectionLost("gone"))
    with pytest.raises(ConnectionLost):
        await setup.call()
    assert setup.lost == ["w1:1"]
    assert setup.upstreams.ejected("w1:1", DIGITS)
    assert setup.upstreams.ejected("w1:1", OTHER)
    assert setup.ejections == ["lost"]
    setup.now += 0.25
    assert not setup.upstreams.ejected("w1:1", DIGITS)  # the next one probes
    setup.workers.behaviours["w1:1"] = echo
    await setup.call()
    assert not setup.upstreams.ejected("w1:1", DIGITS)


async def test_a_replica_that_refuses_is_avoided_alone() -> None:
    setup = Setup()
    setup.workers.behaviours["w1:1"] = failing(Unavailable("draining"))
    with pytest.raises(Unavailable):
        await setup.call()
    assert setup.upstreams.ejected("w1:1", DIGITS)
    assert not setup.upstreams.ejected("w1:1", OTHER)
    setup.now += 0.25
    setup.workers.behaviours["w1:1"] = echo
    await setup.call()
    setup.now -= 0.2
    assert not setup.upstreams.ejected("w1:1", DIGITS)


@pytest.mark.parametrize("error", [InvalidArgument("shape"), ResourceExhausted("full"), DeadlineExceeded("late")])
async def test_no_evidence_against_the_worker(error: Exception) -> None:
    setup = Setup()
    setup.workers.behaviours["w1:1"] = failing(error)
    with pytest.raises(type(error)):
        await setup.call()
    assert not setup.upstreams.ejected("w1:1", DIGITS)


@pytest.mark.parametrize("end", ["cancelled", "late"])
async def test_a_probe_without_evidence_leaves_room_for_the_next(end: str) -> None:
    setup, reached = Setup(), asyncio.Event()
    setup.workers.behaviours["w1:1"] = failing(ConnectionLost("gone"))
    with pytest.raises(ConnectionLost):
        await setup.call()
    setup.now += 1

    async def hang(sent: Sent) -> Answer:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    setup.workers.behaviours["w1:1"] = hang if end == "cancelled" else failing(DeadlineExceeded("late"))
    probe = asyncio.create_task(setup.call())
    if end == "cancelled":
        await reached.wait()
        assert setup.upstreams.ejected("w1:1", DIGITS)  # while the probe is out
        probe.cancel()
    with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
        await probe
    assert not setup.upstreams.ejected("w1:1", DIGITS)


async def test_closed_when_unrouted_and_idle() -> None:
    setup, go, reached = Setup(), asyncio.Event(), asyncio.Event()

    async def slow(sent: Sent) -> Answer:
        reached.set()
        await go.wait()
        return Answer(b"")

    setup.workers.behaviours["w1:1"] = slow
    runner = asyncio.create_task(setup.upstreams.run())
    request = asyncio.create_task(setup.call())
    await reached.wait()
    setup.upstreams.keep(frozenset())
    await asyncio.sleep(0)
    assert setup.workers.closed == []
    go.set()
    await request
    async with asyncio.timeout(30):
        await setup.workers.one_closed.wait()
    assert setup.upstreams.open == 0
    await setup.call()  # opened anew when routed again
    assert setup.workers.opened == ["w1:1", "w1:1"]
    runner.cancel()


async def test_an_address_that_comes_back_is_kept() -> None:
    setup = Setup()
    await setup.call()
    setup.upstreams.keep(frozenset())
    setup.upstreams.keep(frozenset({"w1:1"}))
    runner = asyncio.create_task(setup.upstreams.run())
    for _ in range(5):
        await asyncio.sleep(0)
    assert setup.workers.closed == []
    runner.cancel()
    await setup.upstreams.close()
    assert setup.workers.closed == ["w1:1"]


async def test_a_replica_that_refused_and_is_asked_no_more_is_forgotten() -> None:
    """Else nothing at its worker would ever take the straight road again."""
    setup = Setup()
    setup.workers.behaviours["w1:1"] = failing(Unavailable("no longer on this worker"))
    with pytest.raises(Unavailable):
        await setup.call(OTHER)
    assert setup.upstreams.free("w1:1", DIGITS, setup.now) is None
    setup.now += 5.0
    setup.upstreams.sweep()
    assert setup.upstreams.free("w1:1", DIGITS, setup.now) is None
    setup.now += 5.0
    setup.upstreams.sweep()
    place = setup.upstreams.free("w1:1", DIGITS, setup.now)
    assert place is not None
    place[0].left()
