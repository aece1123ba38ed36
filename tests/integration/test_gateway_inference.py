"""Inference through a real gateway server: real gRPC on both hops, routes from a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton

from penstock.errors import DeadlineExceeded, InvalidArgument, NotFound, TooLarge, Unavailable
from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2 as pb
from penstock.wire.call import VERSION
from penstock.wire.client import SERVICE, ConnectionLost, Peer
from tests.harness.etcd import EtcdProcess
from tests.integration.gateway_harness import EchoWorker, gateway, hang, workers


async def test_default_version_alias_number(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it, workers(2) as (one, two):
        await it.put_deployment(1, 2, default=1, best=2)
        await it.put_replica(one.replica(1))
        await it.put_replica(two.replica(2))
        await it.until(lambda: len(it.routes.table.addresses) == 2)
        for text, version, worker in (("", "1", "w1"), ("1", "1", "w1"), ("2", "2", "w2"), ("best", "2", "w2")):
            response, answered = await it.infer(text)
            assert (response.model_version, answered, response.id) == (version, worker, "7")
            assert response.raw_output_contents == [b"abcd"]
        assert one.calls[0].headers[VERSION] == "1"
        with pytest.raises(NotFound, match="version 3 of model 'digits' is not deployed; deployed: 1, 2"):
            await it.infer("3")
        with pytest.raises(InvalidArgument, match="neither a positive integer nor an alias"):
            await it.infer("no/such")


async def test_a_new_version_takes_over_when_it_is_ready(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it, workers(2) as (one, two):
        await it.put_deployment(1, default=1)
        await it.put_replica(one.replica(1))
        await it.routed()
        await it.put_deployment(1, 2, default=2)
        await it.put_replica(two.replica(2, pb.REPLICA_STATE_LOADING))
        await it.until(lambda: 2 in it.routes.table.models["digits"].versions)
        assert (await it.infer())[0].model_version == "1"
        with pytest.raises(Unavailable, match="version 2 of model 'digits' is"):
            await it.infer("2")
        await it.put_replica(two.replica(2))
        await it.routed("2")
        assert (await it.infer())[0].model_version == "2"


async def test_a_worker_killed_with_a_request_in_flight(clean_etcd: str) -> None:
    """The request is answered by the other worker; the next ones do not even try the dead one."""
    async with gateway(clean_etcd) as it, workers(2) as pair:
        for worker in pair:
            worker.before = hang
            await it.put_replica(worker.replica())
        await it.put_deployment(1, default=1)
        await it.routed(replicas=2)
        request = asyncio.create_task(it.infer())
        first, other = await reached(pair)
        other.before = None
        await first.kill()
        _, answered = await asyncio.wait_for(request, 30)
        assert answered == other.name
        for _ in range(10):
            assert (await it.infer())[1] == other.name
        assert len(first.calls) == 1


async def reached(pair: list[EchoWorker]) -> tuple[EchoWorker, EchoWorker]:
    """(the worker that has the request, the other one)."""
    waits = [asyncio.create_task(worker.reached.wait()) for worker in pair]
    async with asyncio.timeout(30):
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    first, other = sorted(pair, key=lambda worker: not worker.reached.is_set())
    return first, other


async def test_the_only_worker_killed_is_a_retryable_error_without_names(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it, workers(1) as (one,):
        one.before = hang
        await it.put_deployment(1, default=1)
        await it.put_replica(one.replica())
        await it.routed()
        request = asyncio.create_task(it.infer())
        async with asyncio.timeout(30):
            await one.reached.wait()
        await one.kill()
        with pytest.raises(Unavailable, match="stopped answering") as caught:
            await request
        assert not isinstance(caught.value, ConnectionLost)
        assert one.address not in caught.value.message


async def test_a_worker_that_comes_back_is_found_again(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it, workers(1) as (one,):
        await it.put_deployment(1, default=1)
        await it.put_replica(one.replica())
        await it.routed()
        await it.infer()
        await one.kill()
        with pytest.raises(Unavailable):
            await it.infer()
        again = EchoWorker("again")
        await again.start(int(one.address.rpartition(":")[2]))
        async with asyncio.timeout(30):
            while True:
                try:
                    assert (await it.infer())[1] == "again"
                    break
                except Unavailable:
                    continue
        await again.kill()


async def test_a_worker_that_hangs_ends_with_the_deadline(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it, workers(1) as (one,):
        one.before = hang
        await it.put_deployment(1, default=1)
        await it.put_replica(one.replica())
        await it.routed()
        started = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            await it.infer(timeout=1)
        assert asyncio.get_running_loop().time() - started < 20
        async with asyncio.timeout(30):
            await one.cancelled.wait()
        assert one.calls[0].deadline - started < 20  # the deadline travelled: its own would be 30 s


async def test_a_caller_who_leaves_cancels_the_worker(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it, workers(1) as (one,):
        one.before = hang
        await it.put_deployment(1, default=1)
        await it.put_replica(one.replica())
        await it.routed()
        request = asyncio.create_task(it.infer())
        async with asyncio.timeout(30):
            await one.reached.wait()
            request.cancel()
            await one.cancelled.wait()


async def test_etcd_gone_and_back(etcd: EtcdProcess) -> None:
    async with gateway(etcd.endpoint) as it, workers(2) as (one, two):
        await it.put_deployment(1, default=1)
        await it.put_replica(one.replica())
        await it.routed()
        await asyncio.to_thread(etcd.kill)
        for _ in range(20):
            assert (await it.infer())[1] == "w1"
        await asyncio.to_thread(etcd.start)
        await it.put_replica(two.replica())
        await it.routed(replicas=2)
        assert {(await it.infer())[1] for _ in range(40)} == {"w1", "w2"}


async def test_etcd_wiped(etcd: EtcdProcess) -> None:
    """A store that comes back empty takes nothing away; a worker that is really gone goes by the failed connection."""
    async with gateway(etcd.endpoint) as it, workers(2) as (one, two):
        await it.put_deployment(1, default=1)
        await it.put_replica(one.replica())
        await it.put_replica(two.replica())
        await it.routed(replicas=2)
        await asyncio.to_thread(etcd.wipe)
        async with asyncio.timeout(30):
            while it.routes.held != 2:
                assert (await it.infer())[1] in ("w1", "w2")
        await two.kill()
        await it.routed(replicas=1)
        assert (await it.infer())[1] == "w1"
        assert it.routes.held == 1


async def test_bad_requests(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it:
        deadline = asyncio.get_running_loop().time() + 10

        async def send(payload: bytes) -> None:
            await it.peer.unary("ModelInfer", payload, deadline=deadline, headers={})

        with pytest.raises(InvalidArgument, match="not a valid protobuf"):
            await send(b"\xff\xff\xff\xff")
        with pytest.raises(InvalidArgument, match="names no model"):
            await send(b"")
        with pytest.raises(NotFound):
            await send(oip.ModelInferRequest(model_name="../../etc/passwd").SerializeToString())
        with pytest.raises(TooLarge, match="larger than 1048576 bytes"):
            await send(bytes((1 << 20) + 1))


async def test_tritonclient(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it, workers(2) as pair:
        await it.put_deployment(1, default=1, best=1)
        for worker in pair:
            await it.put_replica(worker.replica())
        await it.routed(replicas=2)
        data = np.arange(4, dtype=np.float32)
        tensor = triton.InferInput("x", [4], "FP32").set_data_from_numpy(data)
        async with triton.InferenceServerClient(it.address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("digits")
            assert not await client.is_model_ready("nobody")
            metadata = await client.get_model_metadata("digits")
            assert (metadata.platform, list(metadata.versions)) == ("echo", ["1"])
            index = await client.get_model_repository_index()
            assert [(row.name, row.state) for row in index.models] == [("digits", "READY")]
            result = await client.infer("digits", [tensor], model_version="best", request_id="r")
            np.testing.assert_array_equal(result.as_numpy("x"), data)
            assert result.get_response().id == "r"

            async def requests() -> AsyncIterator[dict[str, Any]]:
                for number in range(5):
                    name = "digits" if number != 3 else "nobody"
                    yield {"model_name": name, "inputs": [tensor], "request_id": str(number)}

            answers = [answer async for answer in client.stream_infer(requests())]
            assert [result.get_response().id for result, error in answers if error is None] == ["0", "1", "2", "4"]
            assert "not deployed" in str(answers[3][1])


async def test_a_method_that_is_not_there(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it:
        unknown: Any = it.channel.unary_unary(f"/{SERVICE}/TraceSetting")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_peer_of_this_project_can_be_stacked(clean_etcd: str) -> None:
    """The protocol is the same at both hops, so a gateway can stand before a gateway."""
    async with gateway(clean_etcd) as it, workers(1) as (one,):
        await it.put_deployment(1, default=1)
        await it.put_replica(one.replica())
        await it.routed()
        peer = Peer(it.address)
        request = oip.ModelMetadataRequest(name="digits").SerializeToString()
        deadline = asyncio.get_running_loop().time() + 10
        answer = await peer.unary("ModelMetadata", request, deadline=deadline, headers={})
        assert oip.ModelMetadataResponse.FromString(answer.payload).platform == "echo"
        await peer.close()
