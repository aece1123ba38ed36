"""Spans leave by OTLP: a real gRPC collector service receives what a traced process sends."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

TRACE = "0af7651916cd43dd8448eb211c80319c"
SCRIPT = f"""
import sys
from penstock.kit import telemetry
telemetry.setup("gateway", "gateway-1", otlp_endpoint=sys.argv[1], trace_file="", trace_ratio=0.0)
headers = {{"traceparent": "00-{TRACE}-b7ad6b7169203331-01"}}
assert telemetry.sampled(headers)
with telemetry.span("gateway.infer", headers, model="digits"):
    pass
telemetry.shutdown()
"""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.received: Queue[Any] = Queue()

    def Export(self, request: Any, context: Any) -> Any:
        self.received.put(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_span_reaches_the_collector() -> None:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        # A process of its own, because tracing is set up once per process.
        subprocess.run([sys.executable, "-c", SCRIPT, f"http://127.0.0.1:{port}"], check=True, timeout=120)
        (resource,) = collector.received.get(timeout=10).resource_spans
    finally:
        server.stop(0).wait()
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert attributes["service.name"] == "gateway"
    assert attributes["service.instance.id"] == "gateway-1"
    (span,) = resource.scope_spans[0].spans
    assert span.name == "gateway.infer"
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
