"""Who leaves is taken out of the worker's queue, through both hops, while the engine is busy with another."""

from __future__ import annotations

import re
import threading
import urllib.request
from typing import Any

import grpc
import pytest

from deploy.local.suite import Suite
from penstock import Client
from penstock.oip import inference_pb2 as oip
from tests.e2e.calling import wait_until
from tests.e2e.conftest import grpc_address, serve
from tests.harness import models

NAME = "left"
_METRIC = re.compile(r"^penstock_(worker_requests_total|gateway_in_flight)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def metrics(suite: Suite) -> tuple[int, dict[str, int]]:
    """Requests under way at the gateway; requests of the model that have ended at the workers, by code."""
    under_way = 0
    ended: dict[str, int] = {}
    for process in ("gateway", "worker_1", "worker_2"):
        port = suite.ports[f"{process}_admin"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        for name, labels, value in _METRIC.findall(text):
            if name == "gateway_in_flight":
                under_way = int(float(value))
            elif f'model="{NAME}"' in labels:
                code = labels.partition('code="')[2].partition('"')[0]
                ended[code] = ended.get(code, 0) + int(float(value))
    return under_way, ended


def times(count: int) -> bytes:
    """A request that keeps the engine busy for about 0.3 ms times count."""
    request = oip.ModelInferRequest(model_name=NAME)
    request.inputs.add(name="times", datatype="INT64", shape=[1]).contents.int64_contents.append(count)
    return request.SerializeToString()


def stream_of(requests: list[bytes], over: threading.Event) -> Any:
    """Those requests, and a stream that its caller leaves open until then."""
    yield from requests
    over.wait()


def test_requests_in_the_queue_leave_it_at_once(suite: Suite, client: Client, tmp_path: Any) -> None:
    serve(client, models.slow(tmp_path / NAME, NAME))
    unary, stream = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"
    channel: Any = grpc.insecure_channel(grpc_address(suite))
    other: Any = grpc.insecure_channel(grpc_address(suite), options=[("grpc.use_local_subchannel_pool", 1)])
    with channel:
        call = channel.unary_unary(unary)
        busy = call.future(times(25_000), timeout=100)
        wait_until(lambda: metrics(suite)[0] == 1)
        # Seven wait: two will be cancelled, one has a deadline, one connection will break, a stream has three.
        cancelled = [call.future(times(1), timeout=100) for _ in range(2)]
        late = call.future(times(1), timeout=4)
        broken = other.unary_unary(unary).future(times(1), timeout=100)
        # Not by the call's own state: gRPC may ask for the next request before it has given us the call.
        over = threading.Event()
        streaming = channel.stream_stream(stream)(stream_of([times(1)] * 3, over), timeout=100)
        streaming.add_done_callback(lambda _: over.set())
        wait_until(lambda: metrics(suite)[0] == 8 or late.done())
        for future in cancelled:
            future.cancel()
        streaming.cancel()
        other.close()
        wait_until(lambda: sum(metrics(suite)[1].values()) == 7)
        assert not busy.done(), "the engine was to be busy all the while"
        ended = metrics(suite)[1]
        assert ended.get("CANCELLED", 0) >= 6
        assert ended.get("CANCELLED", 0) + ended.get("DEADLINE_EXCEEDED", 0) == 7
        with pytest.raises(grpc.RpcError) as caught:
            late.result()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert broken.done()
        assert busy.result()
    # The engine has never heard of them.
    request = oip.ModelStatisticsRequest(name=NAME)
    channel = grpc.insecure_channel(grpc_address(suite))
    with channel:
        answer = channel.unary_unary("/inference.GRPCInferenceService/ModelStatistics")(request.SerializeToString())
    (statistics,) = oip.ModelStatisticsResponse.FromString(answer).model_stats
    assert statistics.execution_count == 1
    client.undeploy(NAME, wait=120)
