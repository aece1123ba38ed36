"""Requests for versions that are not loaded: they wait, they go when it is, in order, and nobody is left behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from penstock.errors import DeadlineExceeded, NotFound, PenstockError, ResourceExhausted, Unavailable
from penstock.internal.v1 import demand_pb2 as pb
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Answer
from services.gateway import waiting
from services.gateway.flight import Flight
from services.gateway.held import Held
from services.gateway.inference import Inference
from services.gateway.metrics import RequestMetrics
from services.gateway.repository import Repository
from services.gateway.room import Place, Room
from tests.unit.gateway.doubles import Gateway, NoRegistry, Sent, call, echo, request
from tests.unit.gateway.records import DRAINING, FAILED, LOADING, READY, deployment, keyed, replica
from tests.unit.worker import virtual_time


@pytest.fixture(params=["by a task", "straight"], autouse=True)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both roads that a call can take; held.py is the second one's."""
    monkeypatch.setattr(Gateway, "straight", request.param == "straight")


class Cold:
    """A gateway with one model that is loaded on demand and not loaded. wishes: how often somebody was the first."""

    def __init__(
        self, *replicas: Any, most: int = 100, most_each: int = 100, share: int = 1, gateway: Gateway | None = None
    ) -> None:
        self.it = gateway or Gateway([deployment("digits", 1, on_demand=[1])], list(replicas))
        self.it.workers.behaviours = {"w1:1": echo, "w2:1": echo}
        self.wishes = 0
        upstreams, routes = self.it.upstreams, self.it.routes
        self.room = Room(routes, upstreams.demand, most=most, most_each=most_each, share=share, wish=self._wish)
        self.it.inference = Inference(
            routes, upstreams, Repository(routes, NoRegistry()), max_body_bytes=1 << 20, room=self.room
        )
        self.flow = upstreams.demand.flow(("digits", 1))

    def _wish(self) -> None:
        self.wishes += 1

    def asks(self, timeout: float = 30.0, number: int = 7) -> asyncio.Task[Answer]:
        payload = oip.ModelInferRequest(model_name="digits", id=str(number)).SerializeToString()
        return asyncio.create_task(self.it.infer(call("ModelInfer", payload, timeout)))

    async def waiting(self, count: int) -> None:
        for _ in range(count + 10):
            await asyncio.sleep(0)
        assert len(self.room) == count

    def becomes(self, *replicas: Any) -> None:
        self.it.replicas.records = keyed(*replicas)
        self.it.rebuild()

    def left_clean(self) -> None:
        assert len(self.room) == 0
        assert (self.flow.waiting, self.flow.outstanding) == (0, 0)
        assert self.room._gone == {}
        assert self.room._waking == set()
        assert self.room._estimates == {}


def timeless(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """In virtual time."""

    def run() -> None:
        async def main() -> None:
            await test()

        virtual_time.run(main())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


@timeless
async def test_one_wish_however_many_wait_and_all_go_in_order() -> None:
    cold = Cold()
    tasks = [cold.asks(number=number) for number in range(20)]
    await cold.waiting(20)
    assert (cold.wishes, cold.flow.waiting) == (1, 20)
    cold.becomes(replica("w1", LOADING))
    await cold.waiting(20)
    cold.becomes(replica("w1"))
    await asyncio.gather(*tasks)
    sent = [oip.ModelInferRequest.FromString(each.payload).id for each in cold.it.workers.sent]
    assert sent == [str(number) for number in range(20)]
    assert cold.flow.requests == 20, "each counts once"
    cold.left_clean()


@timeless
async def test_those_who_waited_do_not_all_fall_upon_the_replica() -> None:
    cold, under_way, most = Cold(most=1000, most_each=1000), 0, 0
    go = asyncio.Semaphore(0)

    async def slowly(sent: Sent) -> Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go.acquire()
        under_way -= 1
        return await echo(sent)

    cold.it.workers.behaviours["w1:1"] = slowly
    tasks = [cold.asks() for _ in range(300)]
    await cold.waiting(300)
    cold.becomes(replica("w1"))
    for _ in range(300):
        go.release()
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    assert most == waiting.AT_ONCE
    cold.left_clean()


@timeless
async def test_those_who_waited_are_woken_in_portions_between_which_others_come() -> None:
    cold = Cold(most=1000, most_each=1000)
    tasks = [cold.asks() for _ in range(60)]
    await cold.waiting(60)
    sent: list[int] = []

    def look() -> None:
        """Somebody else's turn, again and again."""
        sent.append(len(cold.it.workers.sent))
        if len(sent) < 100:
            asyncio.get_running_loop().call_soon(look)

    look()
    cold.becomes(replica("w1"))
    await asyncio.gather(*tasks)
    steps = [after - before for before, after in itertools.pairwise(sent)]
    assert sum(steps) == 60
    assert max(steps) <= waiting.WOKEN
    cold.left_clean()


@pytest.mark.parametrize("state", [LOADING, DRAINING])
def test_whatever_is_there_but_no_ready_replica_is_waited_for(state: Any) -> None:
    async def main() -> None:
        cold = Cold(replica("w1", state))
        task = cold.asks()
        await cold.waiting(1)
        cold.becomes(replica("w2"))
        await task
        cold.left_clean()

    virtual_time.run(main())


@timeless
async def test_the_deadline_brings_the_estimate() -> None:
    cold = Cold()
    task = cold.asks(timeout=10.0)
    await cold.waiting(1)
    cold.room.told(estimates(seconds=25.0))
    cold.room.told(estimates())  # another scheduler, which does not know
    with pytest.raises(Unavailable, match=r"version 1 of model 'digits' is not loaded.*about 16 s") as caught:
        await task
    assert asyncio.get_running_loop().time() == pytest.approx(9.5)
    assert caught.value.retry_after == pytest.approx(15.5)
    cold.left_clean()


@timeless
async def test_the_deadline_brings_the_obstacle() -> None:
    cold = Cold()
    task = cold.asks(timeout=1.0)
    await cold.waiting(1)
    cold.room.told(estimates(obstacle="no worker has 8 GiB free for it"))
    ready = oip.ModelReadyRequest(name="digits").SerializeToString()
    answer = await cold.it.inference.handlers()["ModelReady"](call("ModelReady", ready))
    assert not oip.ModelReadyResponse.FromString(answer.payload).ready
    with pytest.raises(Unavailable, match="no worker has 8 GiB free for it") as caught:
        await task
    assert caught.value.retry_after is None
    cold.left_clean()


def estimates(**what: Any) -> pb.ReportDemandResponse:
    return pb.ReportDemandResponse(estimates=[pb.LoadEstimate(name="digits", version=1, **what)])


@timeless
async def test_a_load_that_fails_ends_the_wait_and_every_later_one() -> None:
    cold = Cold(replica("w1", LOADING))
    tasks = [cold.asks() for _ in range(3)]
    await cold.waiting(3)
    cold.becomes(replica("w1", FAILED, reason="the file is no model", retry=8))
    for task in tasks:
        with pytest.raises(Unavailable, match="could not be loaded: the file is no model") as caught:
            await task
        assert caught.value.retry_after == 8.0
    assert asyncio.get_running_loop().time() == 0.0
    with pytest.raises(Unavailable, match="the file is no model"):
        await cold.asks()
    assert cold.flow.requests == 4, "it is asked for all the same"
    cold.left_clean()


@timeless
async def test_who_leaves_leaves_at_once() -> None:
    cold = Cold()
    first, second = cold.asks(number=1), cold.asks(number=2)
    await cold.waiting(2)
    first.cancel()
    await cold.waiting(1)
    cold.becomes(replica("w1"))
    second.cancel()  # when its turn has come
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert first.cancelled() and second.cancelled()
    assert len(cold.it.workers.sent) == Gateway.straight, "without a task it goes as soon as its turn has come"
    cold.left_clean()


@timeless
async def test_a_full_room_lets_nobody_in() -> None:
    cold = Cold(most_each=2)
    tasks = [cold.asks(), cold.asks()]
    await cold.waiting(2)
    with pytest.raises(ResourceExhausted, match="2 requests wait for version 1") as caught:
        await cold.asks()
    assert caught.value.retry_after == 1.0
    cold.becomes(replica("w1"))
    await asyncio.gather(*tasks)
    cold.left_clean()


@timeless
async def test_a_process_has_its_part_of_the_room_and_one_place_at_least() -> None:
    for most_each, share, places in ((6, 3, 2), (3, 2, 2), (1, 4, 1), (0, 4, 0)):
        cold = Cold(most_each=most_each, share=share)
        tasks = [cold.asks() for _ in range(places)]
        await cold.waiting(places)
        with pytest.raises(ResourceExhausted):
            await cold.asks()
        cold.becomes(replica("w1"))
        await asyncio.gather(*tasks)
        cold.left_clean()


@timeless
async def test_a_version_that_is_undeployed_is_not_there() -> None:
    cold = Cold()
    task = cold.asks()
    await cold.waiting(1)
    cold.it.deployments.records = {}
    cold.it.rebuild()
    with pytest.raises(NotFound):
        await task
    cold.left_clean()


@timeless
async def test_who_leaves_the_process_waits_no_longer_than_the_drain() -> None:
    cold = Cold()
    task = cold.asks(timeout=60.0)
    await cold.waiting(1)
    cold.room.close_at(5.0)
    with pytest.raises(Unavailable, match="not ready before"):
        await task
    assert asyncio.get_running_loop().time() == 5.0
    later = cold.asks(timeout=60.0)
    with pytest.raises(Unavailable):
        await later
    assert asyncio.get_running_loop().time() == 5.0
    cold.left_clean()


@timeless
async def test_the_only_replica_that_dies_is_waited_for() -> None:
    """On demand, a lost worker is a version that is not loaded: the request still has its deadline."""
    cold = Cold(replica("w1"))

    async def dies(sent: Sent) -> Answer:
        cold.becomes()
        raise Unavailable("model 'digits' version 1 is no longer on this worker")

    cold.it.workers.behaviours["w1:1"] = dies
    task = cold.asks()
    await cold.waiting(1)
    cold.becomes(replica("w2"))
    await task
    assert cold.it.workers.addresses == ["w1:1", "w2:1"]
    assert cold.flow.requests == 1
    cold.left_clean()


@timeless
async def test_a_replica_that_has_just_left_is_looked_for_anew() -> None:
    """Its worker says that it is gone before the routes do; then it is loaded again, on the same worker."""
    cold = Cold(replica("w1"))
    refused = 0

    async def gone(sent: Sent) -> Answer:
        nonlocal refused
        refused += 1
        raise Unavailable("model 'digits' version 1 is no longer on this worker")

    cold.it.workers.behaviours["w1:1"] = gone
    task = cold.asks()
    await asyncio.sleep(0.1)
    assert (refused, task.done(), len(cold.room)) == (1, False, 0), "the news are awaited"
    cold.becomes()
    await cold.waiting(1)
    cold.it.workers.behaviours["w1:1"] = echo
    cold.becomes(replica("w1"))
    await task
    assert cold.flow.requests == 1
    cold.left_clean()


@timeless
async def test_news_that_do_not_come_are_not_awaited_for_ever() -> None:
    cold = Cold(replica("w1"))

    async def refuses(sent: Sent) -> Answer:
        raise Unavailable("the model stopped serving on this worker")

    cold.it.workers.behaviours["w1:1"] = refuses
    with pytest.raises(Unavailable, match="stopped serving"):
        await cold.asks()
    assert asyncio.get_running_loop().time() == waiting.NEWS_SECONDS
    cold.left_clean()


@timeless
async def test_nobody_waits_for_a_fixed_number_of_replicas() -> None:
    cold = Cold(gateway=Gateway([deployment("digits", 1)], [replica("w1", LOADING)]))
    with pytest.raises(Unavailable, match="is loading"):
        await cold.it.infer(request())
    assert (cold.wishes, asyncio.get_running_loop().time()) == (0, 0.0)
    cold.left_clean()


@timeless
async def test_before_the_table_is_read_nobody_waits() -> None:
    cold = Cold(gateway=Gateway([], []))
    cold.it.routes.synced = False
    with pytest.raises(Unavailable, match="has not been read"):
        await cold.it.infer(request())
    cold.left_clean()


@timeless
async def test_no_other_version_serves_in_place_of_a_cold_default() -> None:
    gateway = Gateway([deployment("digits", 1, 2, default=2, on_demand=[2])], [replica("w1", version=1)])
    cold = Cold(gateway=gateway)
    task = cold.asks()
    await cold.waiting(1)
    cold.becomes(replica("w1", version=1), replica("w2", version=2))
    await task
    assert cold.it.workers.sent[0].headers["penstock-version"] == "2"


@timeless
async def test_metadata_waits_and_readiness_does_not() -> None:
    cold = Cold()
    payload = oip.ModelReadyRequest(name="digits").SerializeToString()
    answer = await cold.it.inference.handlers()["ModelReady"](call("ModelReady", payload))
    assert oip.ModelReadyResponse.FromString(answer.payload).ready
    assert cold.wishes == 0
    payload = oip.ModelMetadataRequest(name="digits").SerializeToString()
    task = asyncio.ensure_future(cold.it.inference.handlers()["ModelMetadata"](call("ModelMetadata", payload)))
    await cold.waiting(1)
    assert cold.wishes == 1
    cold.becomes(replica("w1", READY))
    assert list(oip.ModelMetadataResponse.FromString((await task).payload).versions) == ["1"]
    cold.becomes(replica("w1", FAILED))
    payload = oip.ModelReadyRequest(name="digits").SerializeToString()
    answer = await cold.it.inference.handlers()["ModelReady"](call("ModelReady", payload))
    assert not oip.ModelReadyResponse.FromString(answer.payload).ready
    cold.left_clean()


@timeless
async def test_errors_of_the_request_are_told_at_once() -> None:
    cold = Cold()
    with pytest.raises(PenstockError, match="not deployed"):
        await cold.it.infer(request(version="9"))
    assert cold.wishes == 0


@timeless
async def test_one_whose_connection_is_not_there_yet_goes_by_a_task() -> None:
    cold = Cold(most=1000, most_each=1000)
    cold.it.workers.absent = 3
    tasks = [cold.asks() for _ in range(100)]
    await cold.waiting(100)
    cold.becomes(replica("w1"))
    await asyncio.gather(*tasks)
    assert cold.it.workers.absent == 0 or not Gateway.straight
    assert cold.flow.requests == 100
    cold.left_clean()


@timeless
async def test_whoever_waits_again_keeps_nobody_from_going() -> None:
    """As many as may go at a time are refused by a replica that goes away: the next replica serves all."""
    cold = Cold(most=1000, most_each=1000)

    async def goes(sent: Sent) -> Answer:
        if len(cold.it.workers.sent) >= waiting.AT_ONCE:
            cold.becomes()
        raise Unavailable("model 'digits' version 1 is no longer on this worker")

    cold.it.workers.behaviours["w1:1"] = goes
    tasks = [cold.asks() for _ in range(3 * waiting.AT_ONCE)]
    await cold.waiting(3 * waiting.AT_ONCE)
    cold.becomes(replica("w1"))
    await asyncio.sleep(1.0)
    assert len(cold.room) == 3 * waiting.AT_ONCE
    cold.becomes(replica("w2"))
    await asyncio.gather(*tasks)
    assert asyncio.get_running_loop().time() < 2.0
    cold.left_clean()


@timeless
async def test_a_turn_that_comes_after_the_deadline_is_too_late() -> None:
    """A loop that stood still sees the news of a replica and the end of the wait together."""
    cold = Cold()
    ends: list[BaseException | None] = []
    late = call("ModelInfer", request().payload, 1.0)
    assert cold.it.inference.direct(late, lambda answer, problem: ends.append(problem)) is not None
    late.deadline = asyncio.get_running_loop().time()
    cold.becomes(replica("w1"))
    assert [type(end) for end in ends] == [DeadlineExceeded]
    assert cold.it.workers.sent == []
    cold.left_clean()


@timeless
async def test_each_is_counted_once_whatever_ends_it() -> None:
    cold = Cold()
    counted: list[tuple[str, str]] = []

    class Counting(RequestMetrics):
        def ended(self, model: str, code: str, seconds: float) -> None:
            counted.append((model, code))

    cold.it.inference._metrics = Counting()
    left, late, went = cold.asks(), cold.asks(timeout=1.0), cold.asks()
    await cold.waiting(3)
    left.cancel()
    with pytest.raises(Unavailable):
        await late
    cold.becomes(replica("w1"))
    await went
    assert sorted(counted) == [("digits", "CANCELLED"), ("digits", "OK"), ("digits", "UNAVAILABLE")]
    cold.left_clean()


@timeless
async def test_cancelling_what_has_ended_counts_nothing() -> None:
    cold = Cold()
    counted: list[str] = []

    class Counting(RequestMetrics):
        def ended(self, model: str, code: str, seconds: float) -> None:
            counted.append(code)

    cold.it.inference._metrics = Counting()
    told: list[object] = []
    left, late, went = (
        cold.it.inference.direct(call("ModelInfer", request().payload, timeout), lambda *end: told.append(end))
        for timeout in (30.0, 1.0, 30.0)
    )
    assert left is not None and late is not None and went is not None
    left.cancel()
    await asyncio.sleep(2.0)
    cold.becomes(replica("w1"))
    await asyncio.sleep(1.0)
    assert (counted, len(told)) == (["CANCELLED", "UNAVAILABLE", "OK"], 2)
    for ended in (left, late, went):
        ended.cancel()
    assert (counted, len(told)) == (["CANCELLED", "UNAVAILABLE", "OK"], 2)
    cold.left_clean()


@timeless
async def test_those_who_waited_are_no_work_for_the_collector() -> None:
    """Cycles of many at once would stop the loop for as long as the collector looks at them."""
    cold = Cold(most=1000, most_each=1000)
    ends: list[str] = []

    def alive() -> int:
        return sum(isinstance(found, Held | Place | Flight) for found in gc.get_objects())

    def done(answer: Answer | None, problem: BaseException | None) -> None:
        ends.append("answered" if answer is not None else type(problem).__name__)

    payload = oip.ModelInferRequest(model_name="digits").SerializeToString()
    gc.collect()
    before = alive()
    gc.disable()
    try:
        for timeout in (1.0, 30.0, 30.0):
            pending = [cold.it.inference.direct(call("ModelInfer", payload, timeout), done) for _ in range(50)]
        pending[-1].cancel()  # type: ignore[union-attr]
        del pending
        await asyncio.sleep(2.0)
        cold.becomes(replica("w1"))
        await asyncio.sleep(1.0)
        assert Counter(ends) == Counter({"Unavailable": 50, "answered": 99})
        left = alive()
    finally:
        gc.enable()
    assert left <= before
