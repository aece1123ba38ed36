"""A worker process from its assignment to its end: real engines, real etcd, real artifacts over gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.errors import InvalidArgument, NotFound, PenstockError, Unavailable, Unsupported
from penstock.internal.v1.records_pb2 import WorkerRecord
from penstock.oip import inference_pb2 as oip
from tests.harness import models
from tests.harness.etcd import EtcdProcess
from tests.integration.worker_harness import FAILED, READY, Bench, bench, engine_processes, kill

NUMBERS = [float(number) for number in range(16)]
PLUS_ONE = [number + 1 for number in NUMBERS]


@pytest.fixture
async def worker(store: Etcd, clean_etcd: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(store, clean_etcd, tmp_path) as made:
        yield made


async def test_an_assignment_is_pulled_loaded_served_and_given_up(worker: Bench, tmp_path: Path) -> None:
    assigned = worker.publish(models.add_one(tmp_path / "m"))
    await worker.assign(assigned)
    record = await worker.reaches("add1", READY)
    assert record.address == worker.peer.address
    answer, trailers = await worker.add_one(NUMBERS)
    assert answer == PLUS_ONE
    assert trailers.trailers["penstock-worker"] == "worker-1"
    assert trailers.trailers["penstock-batch-size"] == "1"
    metadata = oip.ModelMetadataResponse.FromString(
        (await worker.call("ModelMetadata", oip.ModelMetadataRequest(name="add1"))).payload
    )
    assert list(metadata.versions) == ["1"]
    assert list(metadata.inputs[0].shape) == [-1, 16]
    assert len(engine_processes(worker.pid)) == 1
    with pytest.raises(InvalidArgument, match=r"takes shape \[-1, 16\]"):
        tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])
        request = oip.ModelInferRequest(model_name="add1", inputs=[tensor], raw_input_contents=[bytes(8)])
        await worker.call("ModelInfer", request)
    with pytest.raises(Unsupported, match="gateway"):
        await worker.call("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="add1"))

    await worker.assign()
    await worker.gone("add1")
    with pytest.raises(NotFound):
        await worker.add_one(NUMBERS)
    with pytest.raises(Unavailable, match="no longer"):
        await worker.add_one(NUMBERS, version="1")
    assert engine_processes(worker.pid) == []


async def test_requests_that_come_together_share_batches_and_keep_their_answers(worker: Bench, tmp_path: Path) -> None:
    await worker.assign(worker.publish(models.add_one(tmp_path / "m")))
    await worker.reaches("add1", READY)
    rows = [[float(number)] * 16 for number in range(200)]
    answers = await asyncio.gather(*(worker.add_one(row) for row in rows))
    assert [answer for answer, _ in answers] == [[row[0] + 1] * 16 for row in rows]
    assert max(int(answer.trailers["penstock-batch-size"]) for _, answer in answers) > 1
    assert await worker.inferences("add1") == 200


async def test_two_versions_serve_side_by_side_and_the_header_chooses(worker: Bench, tmp_path: Path) -> None:
    first = worker.publish(models.add_one(tmp_path / "one", add=1.0), version=1)
    second = worker.publish(models.add_one(tmp_path / "two", add=2.0), version=2)
    await worker.assign(first, second)
    await worker.reaches("add1", READY, 1)
    await worker.reaches("add1", READY, 2)
    answers = [(await worker.add_one(NUMBERS, version=version))[0][0] for version in ("1", "2", "")]
    assert answers == [1.0, 2.0, 2.0]


async def test_content_with_another_hash_is_refused_until_it_is_right(worker: Bench, tmp_path: Path) -> None:
    assigned = worker.publish(models.add_one(tmp_path / "m"))
    healthy = worker.publish(models.any_size(tmp_path / "n"))
    good = dict(worker.shelf.contents)
    for digest in {*good} - {assigned.manifest_digest, healthy.manifest_digest}:
        content = good[digest]
        if b"add1" in content:
            worker.shelf.contents[digest] = content[:-1] + bytes([content[-1] ^ 1])
    await worker.assign(assigned, healthy)
    failed = await worker.reaches("add1", FAILED)
    assert failed.reason == "the content of an artifact did not match its digest; it was discarded"
    assert failed.retry_seconds >= 1
    await worker.reaches("anysize", READY)
    worker.shelf.contents = good
    await worker.reaches("add1", READY)
    assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE


async def test_a_model_that_does_not_load_says_why_without_paths(worker: Bench, tmp_path: Path) -> None:
    await worker.assign(worker.publish(models.unloadable(tmp_path / "m")))
    failed = await worker.reaches("unloadable", FAILED)
    assert "NoSuchOperator" in failed.reason
    assert str(tmp_path) not in failed.reason
    # It is tried again and again; callers are told so as long as it rests.
    said = ""
    async with asyncio.timeout(60):
        while "could not be loaded" not in said:
            with pytest.raises(Unavailable) as told:
                await worker.add_one(NUMBERS, name="unloadable")
            said = told.value.message


async def test_a_killed_engine_comes_back_and_leaves_the_others_alone(worker: Bench, tmp_path: Path) -> None:
    await worker.assign(worker.publish(models.add_one(tmp_path / "m")))
    await worker.reaches("add1", READY)
    (victim,) = engine_processes(worker.pid)
    steady = worker.publish(models.add_one(tmp_path / "n", name="steady"))
    await worker.assign(worker.publish(models.add_one(tmp_path / "m")), steady)
    await worker.reaches("steady", READY)
    kill(victim)
    ends = await asyncio.gather(
        *(worker.add_one(NUMBERS, name=name) for name in ("add1", "steady") for _ in range(20)), return_exceptions=True
    )
    assert all(isinstance(end, tuple) or type(end) is Unavailable for end in ends[:20])
    assert all(isinstance(end, tuple) for end in ends[20:])
    assert await worker.fails("add1") == "the model's engine ended unexpectedly; it is being restarted"
    await worker.comes_back("add1")
    assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
    assert await worker.inferences("steady") == 20


async def test_a_replica_of_two_engines_serves_while_either_is_replaced(worker: Bench, tmp_path: Path) -> None:
    folder = models.add_one(tmp_path / "m")
    with (folder / "model.yaml").open("a") as file:
        file.write("instances: 2\n")
    await worker.assign(worker.publish(folder))
    await worker.reaches("add1", READY)
    for victim in engine_processes(worker.pid):
        assert len(engine_processes(worker.pid)) == 2
        requests = [asyncio.ensure_future(worker.add_one(NUMBERS)) for _ in range(20)]
        kill(victim)
        await worker.process.event("instance_failed")
        ends = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(end, Unavailable) or end[0] == PLUS_ONE for end in ends)  # type: ignore[index]
        assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
        await worker.process.event("instance_ready")
    rows = [[float(number)] * 16 for number in range(100)]
    answers = await asyncio.gather(*(worker.add_one(row) for row in rows))
    assert [answer for answer, _ in answers] == [[row[0] + 1] * 16 for row in rows]
    record = worker.record("add1")
    assert record is not None and record.state == READY
    assert "replica_failed" not in worker.process.events()
    await worker.assign()
    await worker.gone("add1")
    assert engine_processes(worker.pid) == []


async def test_the_cache_serves_while_the_registry_is_away(worker: Bench, tmp_path: Path) -> None:
    assigned = worker.publish(models.add_one(tmp_path / "m"))
    await worker.assign(assigned)
    await worker.reaches("add1", READY)
    await worker.assign()
    await worker.gone("add1")
    await worker.close_registry()
    await worker.assign(assigned)
    await worker.reaches("add1", READY)
    assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
    assert len(worker.shelf.downloads) == 2
    uncached = worker.publish(models.any_size(tmp_path / "n"))
    await worker.assign(assigned, uncached)
    await worker.reaches("anysize", FAILED)
    await worker.open_registry()
    await worker.reaches("anysize", READY)


async def test_orders_of_an_older_term_are_refused(worker: Bench, tmp_path: Path) -> None:
    assigned = worker.publish(models.add_one(tmp_path / "m"))
    later = worker.publish(models.any_size(tmp_path / "n"))
    await worker.assign(assigned, term=10)
    await worker.reaches("add1", READY)
    await worker.add_one(NUMBERS)
    await worker.assign(term=9)
    await worker.process.event("stale_assignment_refused")
    await worker.assign(assigned, later, term=11)
    await worker.reaches("anysize", READY)
    # Never unloaded: a replica that starts anew counts from zero.
    assert await worker.inferences("add1") == 1


async def test_sigterm_finishes_what_was_asked_and_leaves_the_cluster(worker: Bench, tmp_path: Path) -> None:
    await worker.assign(worker.publish(models.slow(tmp_path / "m")))
    await worker.reaches("slow", READY)

    async def ask(times: int) -> int:
        tensor = oip.ModelInferRequest.InferInputTensor(
            name="times", datatype="INT64", shape=[1], contents=oip.InferTensorContents(int64_contents=[times])
        )
        answer = await worker.call("ModelInfer", oip.ModelInferRequest(model_name="slow", inputs=[tensor]))
        (raw,) = oip.ModelInferResponse.FromString(answer.payload).raw_output_contents
        return int.from_bytes(raw, "little")

    requests = [asyncio.ensure_future(ask(500)) for _ in range(5)]
    while not (await _waiting(worker)) >= 1:
        pass
    worker.process.send(signal.SIGTERM)
    assert await asyncio.gather(*requests) == [501] * 5
    assert await worker.process.ended() == 0
    await worker.gone("slow")
    await worker.changed.until(lambda: not worker.workers.records)


async def _waiting(worker: Bench) -> int:
    """Batches that have been run since the replica was assigned."""
    answer = await worker.call("ModelStatistics", oip.ModelStatisticsRequest(name="slow"))
    (statistics,) = oip.ModelStatisticsResponse.FromString(answer.payload).model_stats
    return statistics.execution_count


async def test_a_leaving_worker_serves_until_others_have_taken_over(
    store: Etcd, clean_etcd: str, tmp_path: Path
) -> None:
    # There before the worker starts, so that its first read of the live workers shows it.
    other = WorkerRecord(id="worker-2", address="127.0.0.1:1")
    await store.put(keys.worker("worker-2"), records.to_json(other))
    async with bench(store, clean_etcd, tmp_path) as worker:
        await worker.assign(worker.publish(models.add_one(tmp_path / "m")))
        await worker.reaches("add1", READY)
        worker.process.send(signal.SIGTERM)
        await worker.changed.until(lambda: worker.workers.records[keys.worker("worker-1")].draining)
        assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
        record = worker.record("add1")
        assert record is not None
        assert record.state == READY
        await worker.assign()
        await worker.gone("add1")
        assert await worker.process.ended() == 0


async def test_a_traced_request_shows_its_wait_and_its_batch(store: Etcd, clean_etcd: str, tmp_path: Path) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    file = tmp_path / "spans.jsonl"
    async with bench(store, clean_etcd, tmp_path, f"--trace-file={file}", "--trace-ratio=0") as worker:
        await worker.assign(worker.publish(models.add_one(tmp_path / "m")))
        await worker.reaches("add1", READY)
        await worker.add_one(NUMBERS)
        await worker.add_one(NUMBERS, traceparent=f"00-{trace}-{parent}-01")
        worker.process.send(signal.SIGTERM)
        assert await worker.process.ended() == 0
    spans = {span["name"]: span for span in map(json.loads, file.read_text().splitlines())}
    infer, batch = spans["worker.infer"], spans["engine.batch"]
    assert (infer["context"]["trace_id"], infer["parent_id"]) == (f"0x{trace}", f"0x{parent}")
    assert infer["attributes"]["batch_size"] == 1
    assert infer["attributes"]["queue_us"] >= 0
    assert batch["parent_id"] == infer["context"]["span_id"]
    assert [link["context"]["span_id"] for link in batch["links"]] == [infer["context"]["span_id"]]


async def test_serving_goes_on_without_etcd_and_the_records_come_back(etcd: EtcdProcess, tmp_path: Path) -> None:
    store = Etcd([etcd.endpoint])
    async with bench(store, etcd.endpoint, tmp_path) as worker:
        await worker.assign(worker.publish(models.add_one(tmp_path / "m")))
        await worker.reaches("add1", READY)
        await asyncio.to_thread(etcd.kill)
        for _ in range(20):
            assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
        # Back without any memory: nobody has assigned anything, and nothing that runs is taken down for that.
        await asyncio.to_thread(etcd.start)
        await asyncio.to_thread(etcd.wipe)
        await worker.changed.until(lambda: worker.replicas.connected and worker.record("add1") is not None)
        assert await worker.inferences("add1") == 20
    await store.close()


async def test_a_second_worker_on_the_same_cache_is_refused(worker: Bench, clean_etcd: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, PenstockError), match="each worker its own"):
        async with bench(worker.store, clean_etcd, tmp_path):
            pass


async def test_an_idle_engine_that_hangs_is_replaced_without_a_request(worker: Bench, tmp_path: Path) -> None:
    await worker.assign(worker.publish(models.add_one(tmp_path / "m")))
    await worker.reaches("add1", READY)
    (hung,) = engine_processes(worker.pid)
    os.kill(hung, signal.SIGSTOP)
    assert "does not answer" in await worker.fails("add1")
    await worker.comes_back("add1")
    assert hung not in engine_processes(worker.pid)
    assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
    assert await worker.inferences("add1") == 1
