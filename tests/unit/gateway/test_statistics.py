"""Counters of all replicas, added up."""

from __future__ import annotations

import pytest

from penstock.errors import InvalidArgument, NotFound, Unavailable
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Answer
from penstock.wire.client import ConnectionLost
from services.gateway.statistics import summed
from tests.unit.gateway.doubles import Behaviour, Gateway, Sent, call, failing
from tests.unit.gateway.records import LOADING, deployment, replica


def duration(count: int) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=count, ns=count * 1000)


def one(name: str = "digits", version: str = "1", count: int = 1) -> oip.ModelStatistics:
    inference = oip.InferStatistics(success=duration(count), queue=duration(count))
    statistics = oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=count,
        inference_count=count * 4,
        execution_count=count,
        inference_stats=inference,
        batch_stats=[oip.InferBatchStatistics(batch_size=count, compute_infer=duration(count))],
        memory_usage=[oip.MemoryUsage(type="CPU", id=0, byte_size=count)],
    )
    statistics.response_stats["0"].success.CopyFrom(duration(count))
    return statistics


def test_summed() -> None:
    (total,) = summed(oip.ModelStatisticsResponse(model_stats=[one(count=each)]) for each in (3, 1, 3)).model_stats
    assert (total.last_inference, total.inference_count, total.execution_count) == (3, 28, 7)
    assert total.inference_stats.success == duration(7)
    assert not total.inference_stats.HasField("fail")
    assert [(batch.batch_size, batch.compute_infer.count) for batch in total.batch_stats] == [(1, 1), (3, 6)]
    assert [(usage.type, usage.byte_size) for usage in total.memory_usage] == [("CPU", 7)]
    assert total.response_stats["0"].success == duration(7)


def test_summed_keeps_models_and_versions_apart_and_in_order() -> None:
    answer = oip.ModelStatisticsResponse(model_stats=[one(version="10"), one(version="9"), one("alpha")])
    keys = [(each.name, each.version) for each in summed([answer]).model_stats]
    assert keys == [("alpha", "1"), ("digits", "9"), ("digits", "10")]


def worker(**counts: int) -> Behaviour:
    """A worker with version 1 of those models."""

    async def answer(sent: Sent) -> Answer:
        asked = oip.ModelStatisticsRequest.FromString(sent.payload).name
        stats = [one(name, count=count) for name, count in counts.items() if asked in ("", name)]
        return Answer(oip.ModelStatisticsResponse(model_stats=stats).SerializeToString())

    return answer


def gateway() -> Gateway:
    replicas = [replica("w1"), replica("w2"), replica("w2", name="other"), replica("w3", LOADING, name="third")]
    it = Gateway([deployment("digits", 1), deployment("other", 1), deployment("third", 1)], replicas)
    it.workers.behaviours = {"w1:1": worker(digits=1), "w2:1": worker(digits=2, other=5)}
    return it


async def ask(it: Gateway, name: str = "", version: str = "") -> dict[str, int]:
    payload = oip.ModelStatisticsRequest(name=name, version=version).SerializeToString()
    answer = await it.inference.handlers()["ModelStatistics"](call("ModelStatistics", payload))
    stats = oip.ModelStatisticsResponse.FromString(answer.payload).model_stats
    return {each.name: each.execution_count for each in stats}


async def test_all_models_ask_every_worker_once() -> None:
    it = gateway()
    assert await ask(it) == {"digits": 3, "other": 5}
    assert sorted(it.workers.addresses) == ["w1:1", "w2:1"]


async def test_one_model() -> None:
    it = gateway()
    assert await ask(it, "digits") == {"digits": 3}
    assert {sent.headers["penstock-version"] for sent in it.workers.sent} == {"1"}
    assert await ask(it, "other", "1") == {"other": 5}


async def test_a_worker_that_is_away_is_left_out() -> None:
    it = gateway()
    it.workers.behaviours["w1:1"] = failing(ConnectionLost("gone"))
    assert await ask(it, "digits") == {"digits": 2}
    it.workers.behaviours["w2:1"] = failing(ConnectionLost("gone"))
    with pytest.raises(Unavailable, match="no worker answers"):
        await ask(it, "digits")


async def test_refused() -> None:
    it = gateway()
    with pytest.raises(NotFound):
        await ask(it, "nobody")
    with pytest.raises(Unavailable, match="loading"):
        await ask(it, "third")
    with pytest.raises(InvalidArgument):
        await ask(it, "", "1")


async def test_nothing_deployed_is_an_empty_answer() -> None:
    assert await ask(Gateway([], [])) == {}
